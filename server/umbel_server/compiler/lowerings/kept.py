"""What lowerings remember of the graph that they emit ops into."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_NOTES = "_umbel_notes"


def remembered(kind: str) -> dict[Any, Any]:
    """Notes of one kind about the current graph; they are kept in it, and go with it."""
    graph = tf.compat.v1.get_default_graph()
    if not hasattr(graph, _NOTES):
        setattr(graph, _NOTES, {})
    notes: dict[str, dict[Any, Any]] = getattr(graph, _NOTES)
    return notes.setdefault(kind, {})


def kept(make: Callable[[Any, Any], Any], x: Any, what: Any) -> Any:
    """`make(x, what)`, made once in a graph: for a convolution and its gradients, for example."""
    made, known = remembered("kept"), (make, x.ref(), what)
    if known not in made:
        made[known] = make(x, what)
    return made[known]
