"""The task's Keras parts, checked before anything is traced."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from umbel.errors import TaskError
from umbel.task import Task
from umbel.tensors import TensorSpec, WeightSpec
from umbel_server.compiler import CompileError

LAYERS = frozenset(
    """
    InputLayer Dense Conv2D MaxPooling2D Flatten Reshape Activation ReLU
    Softmax LeakyReLU ELU Rescaling Identity Permute
    """.split()
)
CONTAINERS = frozenset(["Sequential", "Functional"])
METRICS = ("accuracy", "sparse_categorical_accuracy", "categorical_accuracy", "binary_accuracy", "mae", "mse")
METRIC_NAMES = {"acc": "accuracy", "mean_absolute_error": "mae", "mean_squared_error": "mse"}


@dataclass(frozen=True)
class Sgd:
    """The optimizer that plans can hold: SGD, with momentum when it is not 0."""

    momentum: float
    nesterov: bool


@dataclass(frozen=True)
class KerasParts:
    """A task's model and what trains it. `loss(y, outputs)` gives one value a row; `metrics` likewise by name."""

    model: Any
    loss: Callable[[Any, Any], Any]
    metrics: dict[str, Callable[[Any, Any], Any]]
    optimizer: Sgd
    outputs: dict[str, TensorSpec]

    @property
    def weights(self) -> list[Any]:
        """Every weight in Keras's order."""
        return list(self.model.weights)

    @property
    def weight_specs(self) -> tuple[WeightSpec, ...]:
        """The weights as the manifest names them."""
        return tuple(
            WeightSpec(w.path, tuple(int(n) for n in w.shape), str(w.dtype), bool(w.trainable)) for w in self.weights
        )


def keras_parts(task: Task, seed: int) -> KerasParts:
    """Build the task's model with seeded initial weights; raises TaskError or CompileError on what cannot be compiled."""
    if len(task.input_specs) != 1 or len(task.target_specs) != 1:
        raise CompileError(f"task {task.name}: one input and one target can be compiled so far; concatenate them")
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    try:
        model = task.model()
    except Exception as error:
        raise TaskError(f"task {task.name}: its model function failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, keras.Model):
        raise TaskError(f"task {task.name}: its model function should return a keras.Model, got {type(model).__name__}")
    spec = next(iter(task.input_specs.values()))
    if not model.built:
        model.build((None, *spec.shape))
    _check_layers(model)
    _check_input(task, model, spec)
    shape = tuple(int(n) for n in model.compute_output_shape((task.batch_size, *spec.shape))[1:])
    return KerasParts(
        model,
        _loss(task),
        {METRIC_NAMES.get(m, m): _metric(task, METRIC_NAMES.get(m, m), shape) for m in task.metrics},
        _optimizer(task),
        {"output": TensorSpec(shape)},
    )


def _layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if type(layer).__name__ in CONTAINERS:
            yield from _layers(layer)
        else:
            yield layer


def _check_layers(model: Any) -> None:
    if type(model).__name__ not in CONTAINERS:
        raise CompileError(
            f"model {model.name} is a {type(model).__name__}; write it as Sequential or with the functional API"
        )
    for layer in _layers(model):
        kind = type(layer).__name__
        if kind not in LAYERS or not type(layer).__module__.startswith("keras."):
            raise CompileError(
                f"layer {layer.name} ({kind}) cannot be compiled yet; use {', '.join(sorted(LAYERS - {'InputLayer'}))}"
            )
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            raise CompileError(f"layer {layer.name} ({kind}) is channels_first; devices compute channels_last only")
        if getattr(layer, "groups", 1) != 1:
            raise CompileError(f"layer {layer.name} ({kind}) has groups={layer.groups}; use groups=1")
    for weight in model.weights:
        if str(weight.dtype) != "float32":
            raise CompileError(f"weight {weight.path} is {weight.dtype}; plans train float32")


def _check_input(task: Task, model: Any, spec: TensorSpec) -> None:
    shape = tuple(model.input_shape[1:])
    if len(shape) != len(spec.shape) or any(a not in (None, b) for a, b in zip(shape, spec.shape, strict=True)):
        raise TaskError(f"task {task.name}: its inputs are {list(spec.shape)}, its model takes {list(shape)}")


def _loss(task: Task) -> Callable[[Any, Any], Any]:
    try:
        loss = keras.losses.get(task.loss) if isinstance(task.loss, str) else task.loss()
    except Exception as error:
        raise TaskError(f"task {task.name}: its loss cannot be made: {error}") from error
    if not isinstance(loss, keras.losses.Loss):
        loss = keras.losses.LossFunctionWrapper(loss) if hasattr(keras.losses, "LossFunctionWrapper") else _wrap(loss)
    if getattr(loss, "reduction", "sum_over_batch_size") not in (
        "sum_over_batch_size",
        "mean",
        "mean_with_sample_weight",
    ):
        raise CompileError(
            f"task {task.name}: its loss has reduction {loss.reduction!r}; plans average over the batch, as 'sum_over_batch_size' does"
        )
    loss.reduction = "none"

    def per_row(y: Any, outputs: Any) -> Any:
        values = loss(y, outputs)
        return tf.reduce_mean(values, axis=list(range(1, len(values.shape)))) if len(values.shape) > 1 else values

    return per_row


def _wrap(function: Callable[..., Any]) -> Any:
    from keras.src.losses.losses import LossFunctionWrapper

    return LossFunctionWrapper(function)


def _metric(task: Task, name: str, output: tuple[int, ...]) -> Callable[[Any, Any], Any]:
    """The metric as Keras computes it, one value a row; Keras's own argmax needs ops that devices lack."""
    if name not in METRICS:
        raise CompileError(f"task {task.name}: metric {name!r} cannot be compiled yet; use {', '.join(METRICS)}")
    target = next(iter(task.target_specs.values()))
    if name == "accuracy":
        if output[-1:] in ((), (1,)):
            name = "binary_accuracy"
        else:
            name = "categorical_accuracy" if target.shape == output else "sparse_categorical_accuracy"

    def per_row(y: Any, outputs: Any) -> Any:
        y = tf.cast(y, tf.float32)
        if len(y.shape) == len(outputs.shape) - 1 and (
            outputs.shape[-1] == 1 and name != "sparse_categorical_accuracy"
        ):
            y = tf.expand_dims(y, -1)
        match name:
            case "mae":
                values = tf.reduce_mean(tf.abs(y - outputs), axis=-1)
            case "mse":
                values = tf.reduce_mean(tf.math.squared_difference(y, outputs), axis=-1)
            case "binary_accuracy":
                hits = tf.equal(y, tf.cast(outputs > 0.5, tf.float32))
                values = tf.reduce_mean(tf.cast(hits, tf.float32), axis=-1)
            case "categorical_accuracy":
                values = tf.cast(tf.equal(tf.argmax(y, axis=-1), tf.argmax(outputs, axis=-1)), tf.float32)
            case _:
                if len(y.shape) == len(outputs.shape):
                    y = tf.squeeze(y, -1)
                values = tf.cast(tf.equal(tf.cast(y, tf.int64), tf.argmax(outputs, axis=-1)), tf.float32)
        return tf.reduce_mean(values, axis=list(range(1, len(values.shape)))) if len(values.shape) > 1 else values

    return per_row


def _optimizer(task: Task) -> Sgd:
    try:
        optimizer = keras.optimizers.get(task.optimizer) if isinstance(task.optimizer, str) else task.optimizer()
    except Exception as error:
        raise TaskError(f"task {task.name}: its optimizer cannot be made: {error}") from error
    if type(optimizer) is not keras.optimizers.SGD:
        raise CompileError(
            f"task {task.name}: optimizer {type(optimizer).__name__} cannot be compiled yet; use SGD, with momentum if you like"
        )
    for option in (
        "clipnorm",
        "clipvalue",
        "global_clipnorm",
        "weight_decay",
        "use_ema",
        "gradient_accumulation_steps",
    ):
        if getattr(optimizer, option, None):
            raise CompileError(f"task {task.name}: SGD's {option} cannot be compiled yet; leave it out")
    return Sgd(float(optimizer.momentum), bool(optimizer.nesterov))
