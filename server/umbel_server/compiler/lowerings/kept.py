"""What is computed of a tensor once and used by several lowerings."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import tensorflow as tf

_MADE: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()


def kept(make: Callable[[Any, Any], Any], x: Any, what: Any) -> Any:
    """`make(x, what)`, made once in a graph: for a convolution and its gradients, for example."""
    made = _MADE.setdefault(tf.compat.v1.get_default_graph(), {})
    known = (make, x.ref(), what)
    if known not in made:
        made[known] = make(x, what)
    return made[known]
