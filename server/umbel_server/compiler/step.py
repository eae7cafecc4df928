"""The train step, the evaluation and the inference of the Keras model, traced once with fixed shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import keras
import tensorflow as tf

from umbel.task import Task
from umbel_server.compiler.errors import CompileError
from umbel_server.compiler.keras_metrics import TaskMetrics
from umbel_server.compiler.keras_model import KerasParts, first_line
from umbel_server.compiler.noise import Noise
from umbel_server.compiler.reemit import Program
from umbel_server.compiler.tracing import device_forms, device_noise, padded_rows, refuse_losses_of_rows


@dataclass(frozen=True)
class Traced:
    """The traced programs, over four kinds of variables: weights, optimizer slots, sums of metrics, and FedProx's anchors.

    `train`: inputs, targets, sample_weight, seed -> loss sum, weight sum. `train_proximal`: the same with FedProx's mu
    after the seed; it is a separate program because its term reads every weight once more. `evaluate`: inputs, targets,
    sample_weight -> loss sum, weight sum. These three add to the sums of the metrics. `infer`: inputs -> outputs, for any
    number of rows. `score`: outputs, targets, sample_weight -> the sums of `evaluate`, for outputs that another file has
    computed. `score` is None when the outputs are not enough: when one has a mask, or when a layer adds a loss.
    """

    train: Program
    train_proximal: Program
    evaluate: Program
    infer: Program
    score: Program | None
    metrics: TaskMetrics
    anchors: list[Any]


def trace(task: Task, parts: KerasParts) -> Traced:
    """Trace the model's programs.

    Raises CompileError on an op that a device cannot execute, and on a weight that does not influence the loss.
    """
    rows = task.batch_size
    inputs = {n: tf.TensorSpec((rows, *s.shape), s.dtype, n) for n, s in task.input_specs.items()}
    targets = {n: tf.TensorSpec((rows, *s.shape), s.dtype, n) for n, s in task.target_specs.items()}
    weight, scalar = tf.TensorSpec((rows,), tf.float32), tf.TensorSpec((), tf.float32)
    metrics = TaskMetrics(task, parts)
    parts.optimizer.build(parts.trained)
    anchors = [tf.Variable(v.value, trainable=False) for v in parts.trained]
    hidden = False

    def sums(x: Mapping[str, Any], y: Mapping[str, Any], weight: Any, training: bool) -> tuple[Any, list[Any]]:
        nonlocal hidden
        outputs = parts.call(x, training)
        penalties = parts.model.losses
        if penalties:
            refuse_losses_of_rows(parts.model, list(x.values()))
        masks = [keras.src.backend.get_keras_mask(output) for output in outputs.values()]
        hidden = any(mask is not None for mask in masks) or len(penalties) > len(regularisers())
        return added(outputs, y, weight, penalties)

    def added(
        outputs: Mapping[str, Any], y: Mapping[str, Any], weight: Any, penalties: list[Any]
    ) -> tuple[Any, list[Any]]:
        total = tf.reduce_sum(weight)
        loss = _loss(parts, y, outputs, weight)
        if penalties:
            loss = loss + tf.add_n([tf.cast(value, tf.float32) for value in penalties])
        metrics.update(y, outputs, weight)
        return loss, [loss * total, total]

    def regularisers() -> list[Any]:
        return list(parts.model._get_regularization_losses())

    def train(x: Mapping[str, Any], y: Mapping[str, Any], weight: Any, seed: Any, proximal_mu: Any = None) -> list[Any]:
        variables = [v.value for v in parts.trained]
        with device_noise(Noise(seed, rows)), padded_rows(parts.model, weight):
            with tf.GradientTape() as tape:
                loss, report = sums(x, y, weight, training=True)
            slopes = tape.gradient(loss, variables)
        for slope, variable in zip(slopes, parts.trained, strict=True):
            if slope is None:
                raise CompileError(f"weight {variable.path} does not influence the loss; freeze its layer or remove it")
        if proximal_mu is not None:
            slopes = pulled(slopes, variables, proximal_mu)
        parts.optimizer.apply(slopes, parts.trained)
        return report

    def pulled(slopes: list[Any], variables: list[Any], proximal_mu: Any) -> list[Any]:
        for i, (variable, anchor) in enumerate(zip(variables, anchors, strict=True)):
            # FedProx adds mu / 2 * ||w - anchor||^2 to the loss (arXiv 1812.06127, eq. 2).
            pull = proximal_mu * (variable - anchor)
            if isinstance(slopes[i], tf.IndexedSlices):
                # Keras updates only those rows of an embedding that are in the batch; the pull acts on all rows.
                variable.assign_sub(parts.optimizer.learning_rate * pull)
            else:
                slopes[i] = slopes[i] + pull
        return slopes

    def evaluate(x: Mapping[str, Any], y: Mapping[str, Any], weight: Any) -> list[Any]:
        with device_noise(Noise(tf.constant(0), rows)), padded_rows(parts.model, weight):
            return sums(x, y, weight, training=False)[1]

    def score(outputs: Mapping[str, Any], y: Mapping[str, Any], weight: Any) -> list[Any]:
        return added(outputs, y, weight, regularisers())[1]

    def infer(x: Mapping[str, Any]) -> list[Any]:
        with device_noise(Noise(tf.constant(0), rows)):
            outputs = parts.call(x, training=False)
        return [outputs[name] for name in parts.outputs]

    answers = {n: tf.TensorSpec((rows, *s.shape), s.dtype, n) for n, s in parts.outputs.items()}
    open_inputs = {n: tf.TensorSpec((None, *s.shape), s.dtype, n) for n, s in task.input_specs.items()}
    batch = (inputs, targets, weight)
    seed = tf.TensorSpec((), tf.int32)
    with device_forms(parts.model):
        return Traced(
            _program(parts, train, *batch, seed),
            _program(parts, train, *batch, seed, scalar),
            _program(parts, evaluate, *batch),
            _program(parts, infer, open_inputs, writes=False),
            None if hidden else _program(parts, score, answers, targets, weight),
            metrics,
            anchors,
        )


def _program(parts: KerasParts, function: Any, *specs: Any, writes: bool = True) -> Program:
    try:
        return Program(tf.function(function, autograph=False).get_concrete_function(*specs), parts.model, writes)
    except CompileError as error:
        raise CompileError(first_line(error)) from error
    except LookupError as error:
        op = first_line(error).rpartition(": ")[2].strip("\"'")
        raise CompileError(
            f"op {op} has no gradient in TensorFlow, so that Keras cannot train it either; leave it out, or put "
            "keras.ops.stop_gradient around it"
        ) from error
    except Exception as error:
        raise CompileError(f"the model cannot be traced for a device: {first_line(error)}") from error


def _loss(parts: KerasParts, y: Mapping[str, Any], outputs: Mapping[str, Any], weight: Any) -> Any:
    """The loss as Keras averages it over a batch, without the padding, which has weight 0; 0 for an empty batch."""
    total: Any = 0.0
    for name, (loss, factor) in parts.losses.items():
        target, output = y[parts.targets[name]], outputs[name]
        if len(target.shape) == len(output.shape) == 1:
            # One number for each example: a loss averages over the last axis, which must not be the batch axis.
            target, output = target[:, tf.newaxis], output[:, tf.newaxis]
        values = loss(target, output)
        if len(values.shape) == 0 or values.shape[0] != weight.shape[0]:
            raise CompileError(
                f"loss {loss.name} gives one value for a whole batch, so that a padded batch would train something else; "
                "give it the axes of one example (axis=...), or use another loss"
            )
        # A loss may itself ignore values (ignore_class): then the tensor that it computes before it reduces has a mask.
        masks = [keras.src.backend.get_keras_mask(given) for given in (output, loss.call(target, output))]
        known = [_like(tf.cast(given, tf.float32), values) for given in masks if given is not None]
        each = tf.reshape(weight, [-1] + [1] * (len(values.shape) - 1)) * tf.ones_like(values)
        count = tf.reduce_sum(reduce(tf.multiply, known, each))
        total += factor * tf.reduce_sum(values * each) / tf.maximum(count, 1e-7)
    return total


def _like(mask: Any, values: Any) -> Any:
    return mask if len(mask.shape) == len(values.shape) else tf.reshape(mask, values.shape)
