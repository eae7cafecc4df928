"""The contract that server and device share: tasks, plans, messages, tensors. It imports neither Keras nor Flower."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from umbel.errors import UmbelError

if TYPE_CHECKING:
    from umbel.plan import Plan
    from umbel.task import Task, load_task
    from umbel.tensors import TensorSpec

__all__ = ["Plan", "Task", "TensorSpec", "UmbelError", "load_task"]
__version__ = "0.1.0"

_MODULES = {"Plan": "umbel.plan", "Task": "umbel.task", "TensorSpec": "umbel.tensors", "load_task": "umbel.task"}


def __getattr__(name: str) -> Any:
    """Import a public name where it is used: NumPy and cryptography take as long to import as the rest of the client."""
    if name not in _MODULES:
        raise AttributeError(f"module 'umbel' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
