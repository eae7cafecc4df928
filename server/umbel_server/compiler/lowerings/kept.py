"""A memory for lowerings, one in each graph into which they emit ops."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_NOTES = "_umbel_notes"


def remembered(kind: str) -> dict[Any, Any]:
    """The notes of one kind about the current graph. They are stored in the graph and live as long as it does."""
    graph = tf.compat.v1.get_default_graph()
    if not hasattr(graph, _NOTES):
        setattr(graph, _NOTES, {})
    notes: dict[str, dict[Any, Any]] = getattr(graph, _NOTES)
    return notes.setdefault(kind, {})


def kept(make: Callable[[Any, Any], Any], x: Any, what: Any) -> Any:
    """The result of `make(x, what)`, made once in each graph: a convolution and its gradients share it, for example."""
    made, known = remembered("kept"), (make, x.ref(), what)
    if known not in made:
        made[known] = make(x, what)
    return made[known]
