"""Sums and cumulative products over axes. Long sums are taken in pieces, for accuracy and for shapes that XNNPACK runs."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from umbel_server.compiler.lowerings import lowers

_AT_ONCE = 256
"""The most terms that are added one after the other; the error of a float32 sum grows with their number."""


def total(x: Any, axes: Iterable[int], keepdims: bool = False) -> Any:
    """The sum of `x`, whose shape is static, over `axes`. Neighbouring axes are merged; long sums take two stages."""
    shape = [int(n) for n in x.shape]
    gone = {int(axis) % len(shape) for axis in axes}
    merged: list[tuple[int, bool]] = []
    for axis, size in enumerate(shape):
        if merged and merged[-1][1] == (axis in gone):
            merged[-1] = merged[-1][0] * size, axis in gone
        else:
            merged.append((size, axis in gone))
    sizes, value = [size for size, _ in merged], x
    for axis in reversed([i for i, (_, reduced) in enumerate(merged) if reduced]):
        before, after = _product(sizes[:axis]), _product(sizes[axis + 1 :])
        value = _stage(value, before, sizes[axis], after)
        del sizes[axis]
    kept = [1 if axis in gone else size for axis, size in enumerate(shape) if keepdims or axis not in gone]
    return tf.reshape(value, kept)


def _stage(x: Any, before: int, length: int, after: int) -> Any:
    pieces = next((n for n in range(int(length**0.5), 1, -1) if length % n == 0), 1) if length > _AT_ONCE else 1
    tail = [] if after == 1 else [after]
    if pieces > 1:
        x = tf.reduce_sum(tf.reshape(x, [before * pieces, length // pieces, *tail]), 1)
        length = pieces
    return tf.reduce_sum(tf.reshape(x, [before, length, *tail]), 1)


def _product(sizes: list[int]) -> int:
    return int(np.prod(sizes, dtype=np.int64))


def _axes(op: Any, inputs: list[Any]) -> list[int] | None:
    known = tf.get_static_value(inputs[1])
    if known is None or not inputs[0].shape.is_fully_defined() or len(inputs[0].shape) == 0:
        return None
    return [int(axis) for axis in np.reshape(known, -1)]


@lowers("Sum")
def reduce_sum(op: Any, inputs: list[Any]) -> list[Any]:
    """Sum(x, axes) = `total`: one sum for each group of neighbouring axes."""
    axes = _axes(op, inputs)
    if axes is None:
        return [tf.reduce_sum(inputs[0], inputs[1], keepdims=op.get_attr("keep_dims"))]
    return [total(inputs[0], axes, op.get_attr("keep_dims"))]


@lowers("Mean")
def reduce_mean(op: Any, inputs: list[Any]) -> list[Any]:
    """Mean(x, axes) = the sum divided by the number of terms."""
    axes = _axes(op, inputs)
    if axes is None or not inputs[0].dtype.is_floating:
        return [tf.reduce_mean(inputs[0], inputs[1], keepdims=op.get_attr("keep_dims"))]
    terms = _product([int(inputs[0].shape[axis]) for axis in axes])
    return [total(inputs[0], axes, op.get_attr("keep_dims")) * (1.0 / terms)]


@lowers("BiasAddGrad")
def bias_add_grad(op: Any, inputs: list[Any]) -> list[Any]:
    """BiasAddGrad(dy) = the sum of dy over every axis but the bias's, which is the last one, or the second in NCHW."""
    (dy,) = inputs
    kept = 1 if op.get_attr("data_format") == b"NCHW" else len(dy.shape) - 1
    return [total(dy, [axis for axis in range(len(dy.shape)) if axis != kept])]


@lowers("BiasAdd")
def bias_add(op: Any, inputs: list[Any]) -> list[Any]:
    """BiasAdd(x, b) in NCHW = x + b along the second axis. Keras adds any vector of that length so, not only biases."""
    x, bias = inputs
    if op.get_attr("data_format") == b"NCHW" and len(x.shape) > 2:
        return [x + tf.reshape(bias, [-1] + [1] * (len(x.shape) - 2))]
    return [tf.nn.bias_add(x, bias)]


@lowers("Cumprod")
def cumprod(op: Any, inputs: list[Any]) -> list[Any]:
    """Cumprod(x) = x[0], x[0] x[1], ... along an axis, one product after the other."""
    x, axis = inputs[0], int(tf.get_static_value(inputs[1]))
    steps = tf.unstack(x, axis=axis)
    if op.get_attr("reverse"):
        steps.reverse()
    made = [tf.ones_like(steps[0]) if op.get_attr("exclusive") else steps[0]]
    for step in steps[:-1] if op.get_attr("exclusive") else steps[1:]:
        made.append(made[-1] * step)
    if op.get_attr("reverse"):
        made.reverse()
    return [tf.stack(made, axis=axis)]
