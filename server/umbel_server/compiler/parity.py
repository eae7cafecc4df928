"""The check that a plan trains as Keras does: ten steps from the same weights on the same random data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from umbel_server.compiler.errors import CompileError
from umbel_server.compiler.keras_metrics import keras_metrics
from umbel_server.compiler.keras_model import KerasParts
from umbel_server.compiler.noise import Noise
from umbel_server.compiler.tracing import all_layers, device_noise

STEPS = 10
TOLERANCE = 1e-5
LOOSE_TOLERANCE = 1e-4
"""The tolerance of models with normalisation layers or recurrences, in which more rounding adds up."""

_SHARE = 10.0
"""The allowed error as a multiple of the change that rounding every weight once makes in Keras's own training. It is more
than 1 because the plan rounds at every op."""

_STRAY = 100.0
"""The divisor of a single step's error when it is compared with the median over steps. A few steps may be far off,
because rounding can make another element the maximum."""

Worst = dict[str, tuple[float, str]]
"""The largest error, and the name of the tensor or value that has it, by quantity (loss, metrics, weights, ...)."""
Errors = dict[str, list[float]]
"""The errors of each tensor, one for each step."""


def check_parity(task: Task, parts: KerasParts, manifest: Manifest, train: bytes, infer: bytes) -> Worst:
    """The largest relative error of each quantity and the tensor that has it; raises CompileError above the tolerance.

    The last of the ten batches is half padding in the plan, and half as long in Keras. In some models rounding decides the
    outcome: the batch norms of a deep network amplify it, or two values are equally large. Ten steps then diverge even
    between two runs of Keras, so every step is compared from the same start. The model's weights are restored at the end.
    """
    weights = {w.path: np.array(w.numpy()) for w in parts.weights}
    trainable = Trainable(train, manifest)
    trainable.set_weights(weights)
    trainable.reset()
    if any(not np.array_equal(value, weights[name]) for name, value in trainable.get_weights().items()):
        raise CompileError(f"task {task.name}: get_weights after set_weights gives other weights")
    steps, rate, allowed = _steps(task, parts), task.learning_rate, tolerance(parts)
    keras_run = _Keras(task, parts)
    slots = keras_run.slots()
    limits = dict.fromkeys(("loss", "metrics", "weights", "slots", "evaluate", "infer"), allowed)
    worst = _run_freely(manifest, trainable, keras_run, steps, rate, allowed)
    if _over(worst, allowed):
        keras_run.set(weights, slots)
        worst, loss, updates = _run_step_by_step(manifest, trainable, keras_run, steps, rate, weights)
        # Metrics have no limit: rounding also decides which of two almost equal outputs is the largest.
        limits |= {"loss": loss, "metrics": np.inf}
        limits |= dict.fromkeys(("weights", "slots", "updates"), updates)
    x, _ = random_batch(task, parts, np.random.default_rng(2))
    evaluation = keras_run.step(steps[-1], train=False)
    if not np.isfinite(evaluation["loss"]):
        # After ten steps the moving statistics of a deep network may give this; those of its start may still be usable.
        keras_run.set(weights)
        evaluation = keras_run.step(steps[-1], train=False)
    trainable.set_weights(keras_run.weights())
    _compare_evaluation(worst, manifest, trainable, evaluation, steps[-1])
    _compare_outputs(worst, parts, x, "signature infer", trainable.infer(x))
    keras_run.set(weights)
    _compare_outputs(worst, parts, x, "infer.tflite", Predictor(infer)(x))
    for quantity, (error, name) in worst.items():
        if not error <= limits[quantity]:
            what = f"task {task.name}: the plan differs from Keras by {error:.1e} in {name} ({quantity}), at most "
            if name.endswith((f" of step {STEPS - 1}", " of evaluate")):
                raise CompileError(
                    f"{what}{limits[quantity]:.0e} is allowed, on a batch that is half padding and on no whole one: the model "
                    "or its loss computes with several rows of a batch at once; let it compute each row on its own, or use "
                    "BatchNormalization"
                )
            raise CompileError(
                f"{what}{limits[quantity]:.0e} is allowed; please report the model, or compile with --no-check"
            )
    return worst


def tolerance(parts: KerasParts) -> float:
    """The relative error that is allowed for this model: larger when its layers add up more rounding."""
    rounding = ("Normalization", "RNN", "LSTM", "GRU", "Attention")
    sums_up = any(type(layer).__name__.endswith(rounding) for layer in all_layers(parts.model))
    return LOOSE_TOLERANCE if sums_up else TOLERANCE


def relative_error(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """The largest difference, divided by the largest value of `theirs`, or by 1e-3 if that is more.

    Only finite elements are compared. The error is infinite when the shapes differ, or when the two are not finite in the
    same places.
    """
    if ours.shape != theirs.shape or not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return float("inf")
    known = np.isfinite(theirs)
    largest = float(np.max(np.abs(theirs), initial=0.0, where=known))
    difference = np.abs(np.where(known, ours, 0.0).astype(np.float64) - np.where(known, theirs, 0.0))
    return float(np.max(difference, initial=0.0) / max(1e-3, largest))


@dataclass(frozen=True)
class _Step:
    """The inputs, targets and seed of one step; the first `rows` rows are examples, the others padding."""

    x: Tensors
    y: Tensors
    rows: int
    seed: int


def _steps(task: Task, parts: KerasParts) -> list[_Step]:
    rng, size = np.random.default_rng(1), task.batch_size
    rows = [size] * (STEPS - 1) + [max(1, size // 2)]
    return [_Step(*random_batch(task, parts, rng), n, int(rng.integers(2**31 - 1))) for n in rows]


class _Keras:
    """The task's training in Keras, one step at a time."""

    def __init__(self, task: Task, parts: KerasParts) -> None:
        self._parts, self._model, self._optimizer = parts, parts.model, made_optimizer(task)
        metrics = keras_metrics(task, parts)
        factors = {name: factor for name, (_, factor) in parts.losses.items()}
        self._model.compile(
            loss=made_losses(task),
            loss_weights=factors if len(factors) > 1 else None,
            optimizer=self._optimizer,
            metrics=metrics if len(parts.outputs) > 1 else next(iter(metrics.values()), []),
        )
        self._optimizer.build(parts.trained)
        self._optimizer.learning_rate = task.learning_rate
        self._slots = [v for v in self._optimizer.variables if v is not self._optimizer._learning_rate]
        self._seed = tf.Variable(0, dtype=tf.int32)
        self._noise = Noise(self._seed, task.batch_size)

    def set(self, weights: Tensors, slots: Tensors | None = None) -> None:
        """Set the weights, and the optimizer's slots when given."""
        for w in self._parts.weights:
            w.assign(weights[w.path])
        for i, variable in enumerate(self._slots if slots is not None else []):
            variable.assign((slots or {})[f"s{i}"])

    def step(self, step: _Step, train: bool = True) -> Mapping[str, Any]:
        """Train on the step's examples, or evaluate them; returns loss and metrics as Keras reports them."""
        self._seed.assign(step.seed if train else 0)
        x = {name: value[: step.rows] for name, value in step.x.items()}
        y = {output: step.y[target][: step.rows] for output, target in self._parts.targets.items()}
        targets = y if len(self._parts.outputs) > 1 else next(iter(y.values()))
        with device_noise(self._noise):
            run = self._model.train_on_batch if train else self._model.test_on_batch
            try:
                values: Mapping[str, Any] = run(self._parts.arguments(x), targets, return_dict=True)
            except Exception as error:
                short = step.rows < len(next(iter(step.x.values())))
                raise CompileError(
                    f"Keras itself cannot {'train on' if train else 'evaluate'} {'a short batch' if short else 'random data'} "
                    f"({_reason(error)}); {'let the model take any number of rows' if short else 'fix the model'}"
                ) from error
        self._model.reset_metrics()
        return values

    def weights(self) -> Tensors:
        """A copy of the weights."""
        return {w.path: np.array(w.numpy()) for w in self._parts.weights}

    def slots(self) -> Tensors:
        """A copy of the optimizer's slots."""
        return {f"s{i}": np.array(v.numpy()) for i, v in enumerate(self._slots)}


def _reason(error: Exception) -> str:
    """The message of an error in a running graph, without the lines about the place in the code."""
    lines = [line.strip() for line in str(error).splitlines()]
    return [line for line in lines if line and not line.startswith("[[")][-1][:200]


def _run_freely(
    manifest: Manifest, trainable: Trainable, keras_run: _Keras, steps: Sequence[_Step], rate: float, allowed: float
) -> Worst:
    """The largest errors when plan and Keras each train all steps without resetting; stops once one is not allowed."""
    worst: Worst = {}
    for number, step in enumerate(steps):
        _compare_values(worst, _plan_step(manifest, trainable, step, rate), keras_run.step(step), number)
        if _over(worst, allowed):
            return worst
    _compare(worst, "weights", trainable.get_weights(), keras_run.weights())
    _compare(worst, "slots", trainable.get_slots(), keras_run.slots())
    return worst


def _over(worst: Worst, allowed: float) -> bool:
    return any(not error <= allowed for error, _ in worst.values())


def _run_step_by_step(
    manifest: Manifest, trainable: Trainable, keras_run: _Keras, steps: Sequence[_Step], rate: float, start: Tensors
) -> tuple[Worst, float, float]:
    """The largest errors when the plan starts every step from Keras's weights; and the limits for loss and updates.

    The updates of the weights are compared, not only the weights, so that a small learning rate cannot hide a wrong
    gradient. To find the limits, every weight is rounded once and Keras's step is repeated. The plan rounds at every op, so
    it may be off by several times that difference (_SHARE). When rounding decides a relu or a maximum, a gradient changes
    much, but only at a few steps (_STRAY).
    """
    worst: Worst = {}
    own: Errors = {}
    own_loss = 0.0
    errors: dict[str, Errors] = {"weights": {}, "updates": {}, "slots": {}}
    weights, slots = start, keras_run.slots()
    for number, step in enumerate(steps):
        rounded = _off_by_one_rounding(weights)
        keras_run.set(rounded, slots)
        moved_values = keras_run.step(step)
        moved = _minus(keras_run.weights(), rounded)
        keras_run.set(weights, slots)
        values = keras_run.step(step)
        own_loss = max(own_loss, relative_error(np.asarray(moved_values["loss"]), np.asarray(values["loss"])))
        after, after_slots = keras_run.weights(), keras_run.slots()
        wanted = _minus(after, weights)
        _compare_updates(own, moved, wanted)
        trainable.set_weights(weights)
        trainable.set_slots(slots)
        _compare_values(worst, _plan_step(manifest, trainable, step, rate), values, number)
        ours = trainable.get_weights()
        _compare_updates(errors["updates"], _minus(ours, weights), wanted)
        for quantity, found, theirs in (("weights", ours, after), ("slots", trainable.get_slots(), after_slots)):
            for name, value in theirs.items():
                errors[quantity].setdefault(name, []).append(relative_error(found[name], value))
        weights, slots = after, after_slots
    worst |= {quantity: _largest(found) for quantity, found in errors.items()}
    loss, updates = (max(LOOSE_TOLERANCE, _SHARE * error) for error in (own_loss, _largest(own)[0]))
    return worst, loss, updates


def _largest(errors: Errors) -> tuple[float, str]:
    """The largest typical error of a tensor, and its name: the median over steps, or the maximum divided by _STRAY."""
    counted = {name: max(float(np.median(found)), max(found) / _STRAY) for name, found in errors.items()}
    return max(((error, name) for name, error in counted.items()), default=(0.0, ""))


def _compare_evaluation(
    worst: Worst, manifest: Manifest, trainable: Trainable, theirs: Mapping[str, Any], step: _Step
) -> None:
    sums = trainable.evaluate([_batch(manifest, step)])
    for name, value in results(manifest.metrics, per_example(sums)).items():
        _worse(worst, "evaluate", f"{name} of evaluate", np.asarray(value), np.asarray(theirs[name]))


def _batch(manifest: Manifest, step: _Step) -> Batch:
    """The batch as a device makes it: padding repeats row 0, so that results for padding are finite."""
    real = np.arange(manifest.batch_size) < step.rows
    rows = np.where(real, np.arange(manifest.batch_size), 0)
    return Batch({name: value[rows] for name, value in {**step.x, **step.y}.items()}, real.astype(np.float32))


def _plan_step(manifest: Manifest, trainable: Trainable, step: _Step, rate: float) -> dict[str, float]:
    sums = trainable.train(_batch(manifest, step), rate, seed=step.seed)
    return results(manifest.metrics, per_example(sums))


def _compare_values(worst: Worst, ours: Mapping[str, float], theirs: Mapping[str, Any], step: int) -> None:
    if not np.isfinite(theirs["loss"]):
        raise CompileError(
            f"step {step} of the check has loss {float(theirs['loss'])} in Keras itself: the task diverges on random data; "
            "lower its learning_rate, or compile with --no-check"
        )
    for name, value in ours.items():
        quantity = "loss" if name == "loss" else "metrics"
        _worse(worst, quantity, f"{name} of step {step}", np.asarray(value), np.asarray(theirs[name]))


def _compare(worst: Worst, quantity: str, ours: Tensors, theirs: Tensors) -> None:
    for name, value in theirs.items():
        _worse(worst, quantity, name, ours[name], value)


def _compare_updates(errors: Errors, ours: Tensors, theirs: Tensors) -> None:
    """Append each tensor's error: the norm of the difference, divided by the norm of Keras's update.

    The divisor is at least 1e-3 of the longest update's norm.
    """
    lengths = {name: _length(move) for name, move in theirs.items()}
    longest = max(lengths.values())
    for name, move in theirs.items():
        error = _length(ours[name] - move) / max(lengths[name], 1e-3 * longest, 1e-12)
        errors.setdefault(name, []).append(error if np.isfinite(error) else np.inf)


def _length(move: NDArray[Any]) -> float:
    # Scaled first, because squares of very small updates underflow in float32.
    largest = float(np.max(np.abs(move), initial=0.0))
    return largest * float(np.linalg.norm(move / np.float32(largest))) if 0.0 < largest < np.inf else largest


def _minus(after: Tensors, before: Tensors) -> Tensors:
    return {name: (after[name] - before[name]).astype(np.float32) for name in after}


def _off_by_one_rounding(weights: Tensors) -> Tensors:
    rng = np.random.default_rng(3)
    eps = np.finfo(np.float32).eps
    return {
        name: (w * (1 + eps * rng.choice([-1.0, 1.0], w.shape))).astype(w.dtype) if w.dtype.kind == "f" else w
        for name, w in weights.items()
    }


def _worse(worst: Worst, quantity: str, name: str, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    error = relative_error(np.asarray(ours), np.asarray(theirs))
    if error >= worst.get(quantity, (-1.0, ""))[0]:
        worst[quantity] = (error, name)


def _compare_outputs(worst: Worst, parts: KerasParts, x: Tensors, what: str, ours: Mapping[str, Any]) -> None:
    with device_noise(Noise(tf.constant(0), len(next(iter(x.values()))))):
        theirs = named_outputs(parts.model, parts.model(parts.arguments(x), training=False))
    for name, value in theirs.items():
        _worse(worst, "infer", f"{name} of {what}", ours[name], np.asarray(value))


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
    """The smallest vocabulary of the model's embeddings: every index below it is valid in all of them."""
    sizes = [layer.input_dim for layer in all_layers(parts.model) if isinstance(layer, keras.layers.Embedding)]
    return min(sizes, default=2)


def _random(rng: np.random.Generator, rows: int, spec: TensorSpec, below: int) -> NDArray[Any]:
    if spec.dtype.startswith(("int", "uint")):
        return rng.integers(0, below, (rows, *spec.shape)).astype(spec.dtype)
    values = rng.uniform(0, 1, (rows, *spec.shape))
    if len(spec.shape) > 1:
        # To a deep network all rows of plain noise look alike, so its batch norms would divide by almost zero and amplify
        # rounding. Rows that differ in brightness and in a coarse pattern are closer to real images.
        coarse = rng.uniform(0, 1, (rows, *(-(-n // 8) for n in spec.shape[:-1]), spec.shape[-1]))
        for axis, size in enumerate(spec.shape[:-1], start=1):
            coarse = np.repeat(coarse, 8, axis=axis).take(np.arange(size), axis=axis)
        bright = rng.uniform(0, 1, (rows, *(1 for _ in spec.shape)))
        values = 0.2 * values + 0.8 * coarse * bright
    return values.astype(spec.dtype)
