"""Convolutions whose filter is a variable, and their gradients."""

from typing import Any

import tensorflow as tf

from umbel_server.compiler.lowerings import lowers
from umbel_server.compiler.lowerings.windows import Windows, same_or_valid


@lowers("Conv2D")
def conv2d(op: Any, inputs: list[Any]) -> list[Any]:
    """Conv2D with g groups = g convolutions of channel slices side by side."""
    x, kernel = inputs
    groups = int(x.shape[3]) // int(kernel.shape[2])
    options = {
        "strides": op.get_attr("strides"),
        "dilations": op.get_attr("dilations"),
        "padding": same_or_valid(op),
    }
    if groups == 1:
        return [tf.nn.conv2d(x, kernel, **options)]
    pairs = zip(tf.split(x, groups, axis=3), tf.split(kernel, groups, axis=3), strict=True)
    return [tf.concat([tf.nn.conv2d(part, slab, **options) for part, slab in pairs], axis=3)]


@lowers("Conv2DBackpropFilter")
def conv2d_backprop_filter(op: Any, inputs: list[Any]) -> list[Any]:
    """dW[i, j] = x at tap (i, j) of every window, transposed, times dy: one matmul a tap, all windows at once."""
    x, _, dy = inputs
    kernel = [int(n) for n in op.outputs[0].shape]
    windows = _windows(op, (int(x.shape[1]), int(x.shape[2])), kernel)
    groups = int(x.shape[3]) // kernel[2]
    slabs = [
        _filter_slope(windows, part, slope, kernel[:3])
        for part, slope in zip(tf.split(x, groups, axis=3), tf.split(dy, groups, axis=3), strict=True)
    ]
    return [slabs[0] if groups == 1 else tf.concat(slabs, axis=3)]


@lowers("Conv2DBackpropInput")
def conv2d_backprop_input(op: Any, inputs: list[Any]) -> list[Any]:
    """dx = the sum over taps of dy times W[i, j] transposed, put back where the tap was read: TRANSPOSE_CONV where it can."""
    sizes, kernel, dy = inputs
    shape = [int(n) for n in kernel.shape]
    groups = int(op.outputs[0].shape[3]) // shape[2]
    if groups == 1 and set(op.get_attr("dilations")) == {1}:
        return [tf.nn.conv2d_transpose(dy, kernel, sizes, op.get_attr("strides"), same_or_valid(op))]
    image = (int(op.outputs[0].shape[1]), int(op.outputs[0].shape[2]))
    windows = _windows(op, image, shape)
    parts = [
        tf.add_n(
            [
                windows.untap(_times(slope, slab[i, j], transpose=True), i, j)
                for i in range(shape[0])
                for j in range(shape[1])
            ]
        )
        for slope, slab in zip(tf.split(dy, groups, axis=3), tf.split(kernel, groups, axis=3), strict=True)
    ]
    return [parts[0] if groups == 1 else tf.concat(parts, axis=3)]


def _windows(op: Any, image: tuple[int, int], kernel: list[int]) -> Windows:
    return Windows(
        size=(kernel[0], kernel[1]),
        strides=tuple(op.get_attr("strides")[1:3]),
        dilations=tuple(op.get_attr("dilations")[1:3]),
        padding=same_or_valid(op),
        image=image,
    )


def _filter_slope(windows: Windows, x: Any, dy: Any, kernel: list[int]) -> Any:
    padded = windows.pad(x, 0.0)
    columns = tf.reshape(dy, [-1, int(dy.shape[3])])
    taps = [
        tf.matmul(tf.reshape(windows.tap(padded, i, j), [-1, int(x.shape[3])]), columns, transpose_a=True)
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    return tf.reshape(tf.concat(taps, axis=0), [*kernel, int(dy.shape[3])])


def _times(x: Any, matrix: Any, transpose: bool) -> Any:
    """`x` [batch, height, width, channels] times `matrix` along its channels."""
    batch, height, width, channels = (int(n) for n in x.shape)
    rows = tf.matmul(tf.reshape(x, [-1, channels]), matrix, transpose_b=transpose)
    return tf.reshape(rows, [batch, height, width, -1])
