"""Keras's own word on weights: loss, metrics and predictions, to compare everything else with."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.examples import Examples
from umbel.keras_import import import_keras
from umbel.task import Task
from umbel.tensors import Tensors


def evaluate(task: Task, weights: Tensors, examples: Examples) -> dict[str, float]:
    """`model.evaluate` for `weights` (by variable path): `loss` and the task's metrics."""
    model = _model(task, weights)
    loss = task.loss if isinstance(task.loss, str) else task.loss()
    model.compile(loss=loss, metrics=list(task.metrics))
    x, y = (examples.tensors[name] for name in (*task.input_specs, *task.target_specs))
    results = model.evaluate(x, y, batch_size=task.batch_size, verbose=0, return_dict=True)
    return {name: float(value) for name, value in results.items()}


def predict(task: Task, weights: Tensors, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The model's outputs for `weights`, one row an input row."""
    model = _model(task, weights)
    return np.asarray(model(next(iter(inputs.values())), training=False))


def _model(task: Task, weights: Tensors) -> Any:
    import_keras()
    import keras

    keras.backend.clear_session()
    model = task.model()
    if not model.built:
        model.build((None, *next(iter(task.input_specs.values())).shape))
    model.set_weights([weights[w.path] for w in model.weights])
    return model
