"""Loss, metrics and predictions as Keras itself computes them: the reference for plans and releases."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import TaskError
from umbel.examples import Examples
from umbel.keras_calls import made_losses, made_metrics, model_arguments, named_outputs, targets_of
from umbel.keras_import import import_keras
from umbel.task import Task
from umbel.tensors import Tensors


def evaluate(task: Task, weights: Tensors, examples: Examples) -> dict[str, float]:
    """Run `model.evaluate` with `weights` (by variable path); returns `loss` and the task's metrics."""
    model, inputs = keras_model(task, weights), {name: examples.tensors[name] for name in task.input_specs}
    outputs = list(named_outputs(model, model(model_arguments(model, _rows(inputs, 1)), training=False)))
    targets = {output: examples.tensors[target] for output, target in targets_of(task, outputs).items()}
    factors = {output: float((task.loss_weights or {}).get(output, 1.0)) for output in targets}
    model.compile(
        loss=made_losses(task), metrics=made_metrics(task), loss_weights=factors if len(outputs) > 1 else None
    )
    results = model.evaluate(
        model_arguments(model, inputs),
        targets if len(outputs) > 1 else next(iter(targets.values())),
        batch_size=task.batch_size,
        verbose=0,
        return_dict=True,
    )
    return {name: float(value) for name, value in results.items()}


def predict(task: Task, weights: Tensors, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
    """The model's outputs by name with `weights`, one row for each row of the inputs."""
    model = keras_model(task, weights)
    outputs = model(model_arguments(model, inputs), training=False)
    return {name: np.asarray(value) for name, value in named_outputs(model, outputs).items()}


def keras_model(task: Task, weights: Tensors) -> Any:
    """The task's Keras model with `weights` (by variable path); raises TaskError when they are not those of the model."""
    import_keras()
    import keras

    keras.backend.clear_session()
    model = task.model()
    blank = {name: np.zeros((1, *spec.shape), spec.dtype) for name, spec in task.input_specs.items()}
    model(model_arguments(model, blank), training=False)
    if missing := [w.path for w in model.weights if w.path not in weights]:
        raise TaskError(
            f"task {task.name}: weight {missing[0]} is missing; add the plan's frozen weights: "
            "{**plan.frozen_weights(), **weights}"
        )
    for w in model.weights:
        if weights[w.path].shape != tuple(w.shape):
            raise TaskError(
                f"task {task.name}: weight {w.path} should have shape {list(w.shape)}, got {list(weights[w.path].shape)}; "
                "the weights belong to another version of the task"
            )
    model.set_weights([weights[w.path] for w in model.weights])
    return model


def _rows(tensors: Mapping[str, NDArray[Any]], count: int) -> Tensors:
    return {name: tensor[:count] for name, tensor in tensors.items()}
