"""The check that a plan trains as Keras does: ten steps from the same weights on the same random data."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from umbel.examples import Batch
from umbel.litert import Predictor, Trainable, means
from umbel.plan import Manifest
from umbel.task import Task
from umbel.tensors import Tensors, TensorSpec
from umbel_server.compiler import CompileError
from umbel_server.compiler.keras_model import KerasParts

STEPS = 10
TOLERANCE = 1e-5


def check_parity(task: Task, parts: KerasParts, manifest: Manifest, train: bytes, infer: bytes) -> dict[str, float]:
    """The worst relative error by quantity; raises CompileError, naming the worst tensor, when one is over TOLERANCE.

    The last of the ten batches is half padding in the plan and half as long in Keras. The model's weights are put back.
    """
    weights = {w.path: np.array(w.numpy()) for w in parts.weights}
    trainable = Trainable(train, manifest)
    trainable.set_weights(weights)
    trainable.reset()
    if any(not np.array_equal(value, weights[name]) for name, value in trainable.get_weights().items()):
        raise CompileError(f"task {task.name}: get_weights after set_weights gives other weights")
    worst: dict[str, tuple[float, str]] = {}

    def compare(quantity: str, name: str, ours: Any, theirs: Any) -> None:
        error = relative_error(np.asarray(ours), np.asarray(theirs))
        if error >= worst.get(quantity, (-1.0, ""))[0]:
            worst[quantity] = (error, name)

    model = parts.model
    model.compile(
        loss=task.loss if isinstance(task.loss, str) else task.loss(),
        optimizer=keras.optimizers.SGD(
            task.learning_rate, momentum=parts.optimizer.momentum, nesterov=parts.optimizer.nesterov
        ),
        metrics=list(task.metrics),
    )
    rng = np.random.default_rng(1)
    for step in range(STEPS):
        rows = task.batch_size if step < STEPS - 1 else max(1, task.batch_size // 2)
        x, y = _random_batch(task, parts, rng)
        model.reset_metrics()
        theirs = model.train_on_batch(x[:rows], y[:rows], return_dict=True)
        weight = (np.arange(task.batch_size) < rows).astype(np.float32)
        ours = means(trainable.train(_batch(task, x, y, weight), task.learning_rate))
        compare("loss", f"loss of step {step}", ours["loss"], theirs["loss"])
        for keras_name, name in zip(task.metrics, parts.metrics, strict=True):
            value = theirs.get(keras_name, theirs.get(name))
            if value is not None:
                compare("metrics", name, ours[name], value)
    trained = trainable.get_weights()
    for w in parts.weights:
        compare("weights", w.path, trained[w.path], w.numpy())
    x, y = _random_batch(task, parts, rng)
    expected = np.asarray(model(x, training=False))
    compare("infer", "signature infer", _first(trainable.infer({next(iter(task.input_specs)): x})), expected)
    for w in parts.weights:
        w.assign(weights[w.path])
    expected = np.asarray(model(x, training=False))
    compare("infer", "infer.tflite", _first(Predictor(infer)({next(iter(task.input_specs)): x})), expected)
    for quantity, (error, name) in worst.items():
        if not error <= TOLERANCE:
            raise CompileError(
                f"task {task.name}: the plan differs from Keras by {error:.1e} in {name} ({quantity}), at most {TOLERANCE:.0e} "
                "is allowed; please report the model, or compile with --no-check"
            )
    return {quantity: error for quantity, (error, _) in worst.items()}


def relative_error(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """The largest difference, relative to the largest value (at least 1e-3) of `theirs`; infinite when not finite."""
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.max(np.abs(ours - theirs), initial=0.0) / max(1e-3, float(np.max(np.abs(theirs), initial=0.0))))


def _random_batch(task: Task, parts: KerasParts, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    ((_, x_spec),) = task.input_specs.items()
    ((_, y_spec),) = task.target_specs.items()
    classes = next(iter(parts.outputs.values())).shape[-1:]
    rows = task.batch_size
    x = _random(rng, rows, x_spec)
    if y_spec.dtype.startswith(("int", "uint")):
        y: NDArray[Any] = rng.integers(0, classes[0] if classes and classes[0] > 1 else 2, (rows, *y_spec.shape))
        return x, y.astype(y_spec.dtype)
    if y_spec.shape[-1:] == classes and classes and classes[0] > 1:
        return x, np.eye(classes[0], dtype=y_spec.dtype)[rng.integers(0, classes[0], (rows, *y_spec.shape[:-1]))]
    return x, _random(rng, rows, y_spec)


def _random(rng: np.random.Generator, rows: int, spec: TensorSpec) -> NDArray[Any]:
    if spec.dtype.startswith(("int", "uint")):
        return rng.integers(0, 2, (rows, *spec.shape)).astype(spec.dtype)
    return rng.uniform(0, 1, (rows, *spec.shape)).astype(spec.dtype)


def _batch(task: Task, x: NDArray[Any], y: NDArray[Any], weight: NDArray[np.float32]) -> Batch:
    return Batch({next(iter(task.input_specs)): x, next(iter(task.target_specs)): y}, weight)


def _first(outputs: Mapping[str, NDArray[Any]] | Tensors) -> NDArray[Any]:
    return next(iter(outputs.values()))
