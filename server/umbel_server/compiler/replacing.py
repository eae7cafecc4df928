"""Attributes of Keras's modules and classes, replaced while a task is traced."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_INHERITED = object()


@contextmanager
def replacing(owner: Any, **attributes: Any) -> Iterator[None]:
    """In this block the attributes of `owner`, a module or a class, have these values; afterwards they are restored.

    Other threads see the values too, so only one may trace at a time. Raises AttributeError when `owner` lacks one.
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
