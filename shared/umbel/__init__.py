"""The contract that server and device share: tasks, plans, messages, tensors. Light: it imports neither Keras nor Flower."""

from umbel.errors import UmbelError
from umbel.plan import Plan
from umbel.task import Task, load_task
from umbel.tensors import TensorSpec

__all__ = ["Plan", "Task", "TensorSpec", "UmbelError", "load_task"]
__version__ = "0.1.0"
