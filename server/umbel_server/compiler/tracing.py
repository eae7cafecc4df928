"""Changes of Keras while a model is traced for a device: padded batches, the device's random numbers, unrolled loops."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import numpy as keras_numpy
from keras.src.backend.tensorflow import random as keras_random

from umbel_server.compiler.errors import CompileError
from umbel_server.compiler.loops import unrolled_loops
from umbel_server.compiler.noise import Noise
from umbel_server.compiler.replacing import replacing

_UNSUPPORTED_RANDOM = ("categorical", "randint", "shuffle", "gamma", "binomial", "beta", "truncated_normal")


@contextmanager
def device_noise(noise: Noise) -> Iterator[None]:
    """In this block Keras draws its random numbers from `noise`."""

    def uniform(shape: Any, minval: Any = 0.0, maxval: Any = 1.0, dtype: Any = None, seed: Any = None) -> Any:
        return minval + (maxval - minval) * noise.uniform(shape)

    def normal(shape: Any, mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = None, seed: Any = None) -> Any:
        return mean + stddev * noise.normal(shape)

    def dropout(inputs: Any, rate: float, noise_shape: Any = None, seed: Any = None) -> Any:
        if rate in (0.0, 1.0):
            return inputs if rate == 0.0 else tf.zeros_like(inputs)
        wanted = noise_shape or [None] * len(inputs.shape)
        own = [tf.shape(inputs)[i] if size is None else size for i, size in enumerate(inputs.shape)]
        shape = [mine if size is None else size for size, mine in zip(wanted, own, strict=True)]
        kept = tf.cast(noise.uniform(shape) >= rate, inputs.dtype)
        return inputs * (kept * (1.0 / (1.0 - rate)))

    refused: dict[str, Any] = {name: _refusal(name) for name in _UNSUPPORTED_RANDOM}
    with replacing(keras_random, uniform=uniform, normal=normal, dropout=dropout, **refused):
        yield


@contextmanager
def padded_rows(model: Any, sample_weight: Any) -> Iterator[None]:
    """In this block rows with weight 0 do not count in batch statistics and activity penalties.

    Raises CompileError on an activity regularizer that may combine rows.
    """
    real = tf.cast(sample_weight > 0.0, tf.float32)
    rows = float(sample_weight.shape[0])
    count = tf.maximum(tf.reduce_sum(real), 1.0)

    def by_row(rank: int) -> Any:
        return tf.reshape(real, [-1] + [1] * (rank - 1))

    def moments(layer: Any, inputs: Any, mask: Any) -> tuple[Any, Any]:
        axes = list(layer._reduction_axes)
        rows = by_row(len(inputs.shape))
        if mask is None:
            mean, variance = _moments(inputs, rows, count, axes)
        else:
            each = rows * tf.expand_dims(tf.cast(mask, tf.float32), -1) * tf.ones_like(inputs)
            mean, variance = _weighted_moments(inputs, each, axes)
        return tf.reshape(mean, [-1]), tf.reshape(variance, [-1])

    def penalty(regularizer: Any) -> Callable[[Any], Any]:
        # Keras divides the regularizer's value by the number of rows in the batch, padding included.
        return lambda outputs: regularizer(outputs * by_row(len(outputs.shape))) * (rows / count)

    kept = [(layer, layer.activity_regularizer) for layer in all_layers(model) if layer.activity_regularizer]
    try:
        for layer, regularizer in kept:
            if not isinstance(regularizer, keras.regularizers.L1 | keras.regularizers.L2 | keras.regularizers.L1L2):
                raise CompileError(
                    f"layer {layer.name}: its activity regularizer {type(regularizer).__name__} may mix the rows of a "
                    "batch; use L1, L2 or L1L2"
                )
            layer.activity_regularizer = penalty(regularizer)
        with replacing(keras.layers.BatchNormalization, _moments=moments):
            yield
    finally:
        for layer, regularizer in kept:
            layer.activity_regularizer = regularizer


def _moments(inputs: Any, rows: Any, count: Any, axes: list[int]) -> tuple[Any, Any]:
    """Mean and variance over `axes`, which begin with the batch axis, of the rows whose weight in `rows` is 1."""
    total = count * float(math.prod(int(inputs.shape[axis]) for axis in axes[1:]))

    def averaged(values: Any) -> Any:
        each = tf.reduce_sum(values, axes[1:], keepdims=True) if axes[1:] else values
        return tf.reduce_sum(each * rows, 0, keepdims=True) / total

    @tf.custom_gradient  # type: ignore[untyped-decorator,unused-ignore]
    def moments(x: Any) -> tuple[Any, Any]:
        mean = averaged(x)
        apart = x - mean

        def slope(of_mean: Any, of_variance: Any) -> Any:
            # The variance does not depend on the mean to first order, because the distances from it sum to 0.
            return apart * (rows * (of_variance * 2.0 / total)) + rows * (of_mean / total)

        return (mean, averaged(tf.square(apart))), slope

    found: tuple[Any, Any] = moments(inputs)
    return found


def _weighted_moments(inputs: Any, weights: Any, axes: list[int]) -> tuple[Any, Any]:
    """Mean and variance as Keras computes them for masked time steps, with an epsilon in the divisor."""
    total = tf.reduce_sum(weights, axes, keepdims=True) + keras.config.epsilon()
    mean = tf.reduce_sum(inputs * weights, axes, keepdims=True) / total
    apart = inputs - tf.stop_gradient(mean)
    return mean, tf.reduce_sum(apart * apart * weights, axes, keepdims=True) / total


@contextmanager
def device_forms(model: Any) -> Iterator[None]:
    """In this block Keras uses forms that a device can execute.

    Recurrent layers and loops are unrolled, argmax and argmin are TensorFlow's own, and division keeps sparse rows sparse.
    """

    def rnn(step: Any, inputs: Any, states: Any, go_backwards: bool = False, mask: Any = None, **options: Any) -> Any:
        # When unrolled, Keras reverses the inputs of a backward layer, but not the mask of its outputs.
        if go_backwards and mask is not None:
            time = [0 if options.get("time_major") else 1]
            inputs, mask = keras.tree.map_structure(lambda x: tf.reverse(x, time), inputs), tf.reverse(mask, time)
            go_backwards = False
        return keras_rnn(step, inputs, states, go_backwards=go_backwards, mask=mask, **options)

    def searching(search: Callable[..., Any]) -> Callable[..., Any]:
        def found(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
            x, rank = tf.convert_to_tensor(x), len(x.shape)
            where = search(tf.reshape(x, [-1]) if axis is None else x, axis=axis or 0, output_type=tf.int32)
            if not keepdims:
                return where
            return tf.reshape(where, [1] * rank) if axis is None else tf.expand_dims(where, axis)

        return found

    def divide(x1: Any, x2: Any) -> Any:
        # Keras also adds rows where the divisor is 0 or NaN. An optimizer's divisor never is, because it has an epsilon.
        if isinstance(x1, tf.IndexedSlices) and not isinstance(x2, tf.IndexedSlices) and len(getattr(x2, "shape", ())):
            rows = x1.values / tf.gather(tf.convert_to_tensor(x2), x1.indices)
            return tf.IndexedSlices(rows, x1.indices, x1.dense_shape)
        return keras_divide(x1, x2)

    keras_rnn = keras.src.backend.rnn
    keras_divide = keras_numpy.divide
    recurrent = [(layer, layer.unroll) for layer in all_layers(model) if isinstance(layer, keras.layers.RNN)]
    try:
        for layer, _ in recurrent:
            layer.unroll = True
        with (
            replacing(keras_numpy, argmax=searching(tf.argmax), argmin=searching(tf.argmin), divide=divide),
            replacing(keras.src.backend, rnn=rnn),
            unrolled_loops(),
        ):
            yield
    finally:
        for layer, unroll in recurrent:
            layer.unroll = unroll


def refuse_losses_of_rows(model: Any, inputs: list[Any]) -> None:
    """Raise CompileError when a layer adds a loss (`add_loss`) that depends on the batch, because padding would count."""
    for layer in (model, *all_layers(model)):
        if not layer.activity_regularizer and any(_depends(value, inputs) for value in layer._losses):
            raise CompileError(
                f"layer {layer.name} ({type(layer).__name__}) adds a loss that depends on the batch (add_loss), so a short "
                "batch's padding would count in it; use an activity_regularizer, or an output with a loss"
            )


def _depends(value: Any, inputs: list[Any]) -> bool:
    """Whether a tensor of the graph that is being traced is computed from one of `inputs`."""
    sources, seen, waiting = {tensor.name for tensor in inputs}, set(), [value]
    while waiting:
        tensor = waiting.pop()
        if tensor.name in sources:
            return True
        if tensor.name not in seen:
            seen.add(tensor.name)
            waiting += tensor.op.inputs
    return False


def all_layers(model: Any) -> list[Any]:
    """Every layer of the model, including layers inside other layers and models."""
    return list(model._flatten_layers(include_self=False, recursive=True))


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise CompileError(f"random numbers of the kind {name!r} cannot be drawn on a device; use uniform or normal")

    return refuse
