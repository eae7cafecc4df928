"""The train step, evaluation and inference as pure functions of weights, traced once with fixed shapes."""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from umbel.task import Task
from umbel_server.compiler import CompileError
from umbel_server.compiler.keras_model import KerasParts
from umbel_server.compiler.reemit import refuse_unknown_ops


@dataclass(frozen=True)
class Traced:
    """Traced functions whose flat inputs are the weights in order, then their own.

    `gradients`: x, y, sample_weight -> loss sum, weight sum, metric sums, one gradient a trainable weight.
    `sums`: x, y, sample_weight -> loss sum, weight sum, metric sums. `outputs`: x -> outputs (any number of rows).
    """

    gradients: Any
    sums: Any
    outputs: Any


def trace(task: Task, parts: KerasParts) -> Traced:
    """Trace the model's train step; raises CompileError on an op that no device can execute, or a detached gradient."""
    weights = [tf.TensorSpec(w.shape, tf.float32) for w in parts.weights]
    x, y = next(iter(task.input_specs.values())), next(iter(task.target_specs.values()))
    rows = task.batch_size
    batch = (
        tf.TensorSpec((rows, *x.shape), x.dtype),
        tf.TensorSpec((rows, *y.shape), y.dtype),
        tf.TensorSpec((rows,), tf.float32),
    )
    trainable = [i for i, w in enumerate(parts.weights) if w.trainable]

    def sums(values: list[Any], x: Any, y: Any, weight: Any, training: bool) -> tuple[Any, list[Any]]:
        outputs, losses = _call(parts, values, x, training)
        total = tf.reduce_sum(weight)
        loss_sum = tf.reduce_sum(weight * parts.loss(y, outputs))
        # Keras's mean over a batch without its padding, which has weight 0; an empty batch has loss 0.
        loss = loss_sum / tf.maximum(total, 1e-7)
        if losses:
            penalty = tf.add_n(losses)
            loss, loss_sum = loss + penalty, loss_sum + penalty * total
        metrics = [tf.reduce_sum(weight * metric(y, outputs)) for metric in parts.metrics.values()]
        return loss, [loss_sum, total, *metrics]

    def gradients(values: list[Any], x: Any, y: Any, weight: Any) -> list[Any]:
        variables = [values[i] for i in trainable]
        with tf.GradientTape() as tape:
            tape.watch(variables)
            loss, report = sums(values, x, y, weight, training=True)
        slopes = tape.gradient(loss, variables)
        for slope, index in zip(slopes, trainable, strict=True):
            if slope is None:
                raise CompileError(
                    f"weight {parts.weights[index].path} does not influence the loss; freeze its layer or remove it"
                )
        return [*report, *slopes]

    traced = Traced(
        tf.function(gradients).get_concrete_function(weights, *batch),
        tf.function(lambda values, x, y, w: sums(values, x, y, w, training=False)[1]).get_concrete_function(
            weights, *batch
        ),
        tf.function(lambda values, x: _call(parts, values, x, training=False)[0]).get_concrete_function(
            weights, tf.TensorSpec((None, *x.shape), x.dtype)
        ),
    )
    for function in (traced.gradients, traced.sums, traced.outputs):
        refuse_unknown_ops(function)
    return traced


def _call(parts: KerasParts, values: list[Any], x: Any, training: bool) -> tuple[Any, list[Any]]:
    by_path = {w.path: v for w, v in zip(parts.weights, values, strict=True)}
    outputs, _, losses = parts.model.stateless_call(
        [by_path[v.path] for v in parts.model.trainable_variables],
        [by_path[v.path] for v in parts.model.non_trainable_variables],
        x,
        training=training,
        return_losses=True,
    )
    return outputs, losses
