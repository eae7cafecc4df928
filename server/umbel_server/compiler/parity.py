"""The check that a plan trains as Keras does: ten steps from the same weights on the same random data."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from umbel.examples import Batch
from umbel.keras_calls import made_losses, made_optimizer, named_outputs
from umbel.litert import Predictor, Trainable
from umbel.metrics import per_example, results
from umbel.plan import Manifest
from umbel.task import Task
from umbel.tensors import Tensors, TensorSpec
from umbel_server.compiler import CompileError
from umbel_server.compiler.keras_metrics import keras_metrics
from umbel_server.compiler.keras_model import KerasParts
from umbel_server.compiler.noise import Noise
from umbel_server.compiler.tracing import all_layers, device_noise
from umbel_server.compiler.training_file import slots

STEPS = 10
TOLERANCE = 1e-5
LOOSE_TOLERANCE = 1e-4
"""Models with normalisation layers or recurrences add up more rounding."""

Worst = dict[str, tuple[float, str]]


def check_parity(task: Task, parts: KerasParts, manifest: Manifest, train: bytes, infer: bytes) -> dict[str, float]:
    """The worst relative error by quantity; raises CompileError, naming the worst tensor, when one is over tolerance.

    The last of the ten batches is half padding in the plan and half as long in Keras. The model's weights are put back.
    """
    weights = {w.path: np.array(w.numpy()) for w in parts.weights}
    trainable = Trainable(train, manifest)
    trainable.set_weights(weights)
    trainable.reset()
    if any(not np.array_equal(value, weights[name]) for name, value in trainable.get_weights().items()):
        raise CompileError(f"task {task.name}: get_weights after set_weights gives other weights")
    worst = _train_both(task, parts, manifest, trainable)
    x, _ = random_batch(task, parts, np.random.default_rng(2))
    _compare_outputs(worst, parts, x, "signature infer", trainable.infer(x))
    for w in parts.weights:
        w.assign(weights[w.path])
    _compare_outputs(worst, parts, x, "infer.tflite", Predictor(infer)(x))
    allowed = tolerance(parts)
    for quantity, (error, name) in worst.items():
        if not error <= allowed:
            raise CompileError(
                f"task {task.name}: the plan differs from Keras by {error:.1e} in {name} ({quantity}), at most {allowed:.0e} "
                "is allowed; please report the model, or compile with --no-check"
            )
    return {quantity: error for quantity, (error, _) in worst.items()}


def tolerance(parts: KerasParts) -> float:
    """The relative error that is allowed for this model."""
    rounding = ("Normalization", "RNN", "LSTM", "GRU", "Attention")
    sums_up = any(type(layer).__name__.endswith(rounding) for layer in all_layers(parts.model))
    return LOOSE_TOLERANCE if sums_up else TOLERANCE


def relative_error(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """The largest difference, relative to the largest value (at least 1e-3) of `theirs`; infinite when not finite."""
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf")
    difference = np.abs(ours.astype(np.float64) - theirs)
    return float(np.max(difference, initial=0.0) / max(1e-3, float(np.max(np.abs(theirs), initial=0.0))))


def _train_both(task: Task, parts: KerasParts, manifest: Manifest, trainable: Trainable) -> Worst:
    model = parts.model
    worst: Worst = {}
    optimizer, metrics = made_optimizer(task), keras_metrics(task, parts)
    model.compile(
        loss=made_losses(task),
        loss_weights={name: factor for name, (_, factor) in parts.losses.items()} if len(parts.losses) > 1 else None,
        optimizer=optimizer,
        metrics=metrics if len(parts.outputs) > 1 else next(iter(metrics.values()), []),
    )
    optimizer.build(parts.trained)
    optimizer.learning_rate = task.learning_rate
    seed = tf.Variable(0, dtype=tf.int32)
    rng = np.random.default_rng(1)
    with device_noise(Noise(seed, task.batch_size)):
        for step in range(STEPS):
            rows = task.batch_size if step < STEPS - 1 else max(1, task.batch_size // 2)
            x, y = random_batch(task, parts, rng)
            seed.assign(int(rng.integers(2**31 - 1)))
            short = {name: value[:rows] for name, value in x.items()}
            wanted = {output: y[target][:rows] for output, target in parts.targets.items()}
            theirs = model.train_on_batch(
                parts.arguments(short),
                wanted if len(parts.outputs) > 1 else next(iter(wanted.values())),
                return_dict=True,
            )
            weight = (np.arange(task.batch_size) < rows).astype(np.float32)
            sums = trainable.train(Batch({**x, **y}, weight), task.learning_rate, seed=int(seed.numpy()))
            ours = results(manifest.metrics, per_example(sums))
            for name, value in ours.items():
                kind = "loss" if name == "loss" else "metrics"
                _note(worst, kind, f"{name} of step {step}", np.asarray(value), np.asarray(theirs[name]))
            model.reset_metrics()
    trained = trainable.get_weights()
    for w in parts.weights:
        _note(worst, "weights", w.path, trained[w.path], w.numpy())
    ours_slots = trainable.get_slots()
    for i, (slot, variable) in enumerate(zip(slots(parts), _slots_of(optimizer), strict=True)):
        _note(worst, "slots", slot.path, ours_slots[f"s{i}"], variable.numpy())
    return worst


def _slots_of(optimizer: Any) -> list[Any]:
    return [v for v in optimizer.variables if v is not optimizer._learning_rate]


def _note(worst: Worst, quantity: str, name: str, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    error = relative_error(np.asarray(ours), np.asarray(theirs))
    if error >= worst.get(quantity, (-1.0, ""))[0]:
        worst[quantity] = (error, name)


def _compare_outputs(worst: Worst, parts: KerasParts, x: Tensors, what: str, ours: Mapping[str, Any]) -> None:
    theirs = named_outputs(parts.model, parts.model(parts.arguments(x), training=False))
    for name, value in theirs.items():
        _note(worst, "infer", f"{name} of {what}", ours[name], np.asarray(value))


def random_batch(task: Task, parts: KerasParts, rng: np.random.Generator) -> tuple[Tensors, Tensors]:
    """A batch of inputs and targets that the model and its losses accept."""
    rows = task.batch_size
    x = {name: _random(rng, rows, spec, _vocabulary(parts)) for name, spec in task.input_specs.items()}
    y = {}
    for output, target in parts.targets.items():
        spec, classes = task.target_specs[target], parts.outputs[output].shape[-1:]
        if spec.dtype.startswith(("int", "uint")):
            top = classes[0] if classes and classes[0] > 1 else 2
            y[target] = rng.integers(0, top, (rows, *spec.shape)).astype(spec.dtype)
        elif spec.shape[-1:] == classes and classes and classes[0] > 1:
            picked = rng.integers(0, classes[0], (rows, *spec.shape[:-1]))
            y[target] = np.eye(classes[0], dtype=spec.dtype)[picked]
        else:
            y[target] = _random(rng, rows, spec, 2)
    return x, y


def _vocabulary(parts: KerasParts) -> int:
    """The smallest vocabulary of the model's embeddings: an index below it is in all of them."""
    sizes = [layer.input_dim for layer in all_layers(parts.model) if isinstance(layer, keras.layers.Embedding)]
    return min(sizes, default=2)


def _random(rng: np.random.Generator, rows: int, spec: TensorSpec, below: int) -> NDArray[Any]:
    if spec.dtype.startswith(("int", "uint")):
        return rng.integers(0, below, (rows, *spec.shape)).astype(spec.dtype)
    return rng.uniform(0, 1, (rows, *spec.shape)).astype(spec.dtype)
