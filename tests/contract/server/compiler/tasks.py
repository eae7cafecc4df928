"""Small tasks for the compiler's tests."""

from collections.abc import Callable
from typing import Any

import numpy as np

from umbel import Plan, Task, TensorSpec
from umbel.examples import Batch
from umbel.keras_import import import_keras

import_keras()
import keras  # noqa: E402
from keras import layers  # noqa: E402

Layers = Callable[[], list[Any]]


def task_of(stack: Layers, shape: tuple[int, ...] = (6, 6, 2), dtype: str = "float32", **options: Any) -> Task:
    """A classifier of three classes made of `stack`, in batches of 6."""
    wanted: dict[str, Any] = {
        "name": "case",
        "model": lambda: keras.Sequential([keras.Input(shape, dtype=dtype), *stack()]),
        "loss": "sparse_categorical_crossentropy",
        "metrics": ("accuracy",),
        "inputs": TensorSpec(shape, dtype),
        "targets": TensorSpec((), "int32"),
        "batch_size": 6,
        "learning_rate": 0.05,
    }
    return Task(**{**wanted, **options})


def head() -> list[Any]:
    """What ends a classifier of three classes."""
    return [layers.Flatten(), layers.Dense(3, activation="softmax")]


def random_batch(plan: Plan, seed: int = 0) -> Batch:
    """A batch for a plan of `task_of`."""
    rng, rows = np.random.default_rng(seed), plan.manifest.batch_size
    x = rng.uniform(0, 1, (rows, *plan.manifest.inputs["x"].shape)).astype(np.float32)
    return Batch({"x": x, "y": rng.integers(0, 3, rows).astype(np.int32)}, np.ones(rows, np.float32))


def random_inputs(plan: Plan) -> Batch:
    """A batch of inputs and class indices for any plan of one target."""
    rng, rows = np.random.default_rng(0), plan.manifest.batch_size
    tensors = {}
    for name, spec in plan.manifest.inputs.items():
        shape = (rows, *spec.shape)
        whole = spec.dtype.startswith("int")
        tensors[name] = (rng.integers(1, 50, shape) if whole else rng.uniform(0, 1, shape)).astype(spec.dtype)
    classes = next(iter(plan.manifest.outputs.values())).shape[-1]
    tensors["y"] = rng.integers(0, classes, rows).astype(np.int32)
    return Batch(tensors, np.ones(rows, np.float32))
