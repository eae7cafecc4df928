"""Attributes of Keras's modules and classes, replaced while a task is traced."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_INHERITED = object()


@contextmanager
def replacing(owner: Any, **attributes: Any) -> Iterator[None]:
    """Within it, the attributes of `owner`, a module or a class, have these values; then they are what they were.

    Other threads see them too, so only one may trace at a time. Raises AttributeError when there is no such attribute.
    """
    own = vars(owner)
    for name in attributes:
        if not hasattr(owner, name):
            raise AttributeError(f"{owner.__name__} should have an attribute {name!r}; this Keras does not")
    before = {name: own.get(name, _INHERITED) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            if value is _INHERITED:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
