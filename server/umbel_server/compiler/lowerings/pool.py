"""Gradients of pooling."""

from typing import Any

import tensorflow as tf

from umbel_server.compiler.lowerings import lowers
from umbel_server.compiler.lowerings.activation import above_zero, only_relu_follows
from umbel_server.compiler.lowerings.windows import Windows, same_or_valid


@lowers("MaxPoolGrad")
def max_pool_grad(op: Any, inputs: list[Any]) -> list[Any]:
    """MaxPoolGrad(x, y, dy): the dy of a window goes to the window's first pixel, row by row, that equals its maximum y."""
    x, y, dy = inputs
    if only_relu_follows(op):
        dy = dy * above_zero(y)
    size, strides = tuple(op.get_attr("ksize")[1:3]), tuple(op.get_attr("strides")[1:3])
    image = (int(x.shape[1]), int(x.shape[2]))
    windows = Windows(size, strides, (1, 1), same_or_valid(op), image)
    taps = windows.taps(windows.pad(x, float(x.dtype.min)))
    rest = dy
    pieces: list[list[Any]] = []
    for i in range(size[0]):
        row = []
        for j in range(size[1]):
            last = (i + 1, j + 1) == size
            row.append(rest if last else rest * (1.0 - above_zero(y - taps[i][j])))
            rest = rest - row[-1]
        pieces.append(row)
    return [windows.back(pieces)]


@lowers("AvgPoolGrad")
def avg_pool_grad(op: Any, inputs: list[Any]) -> list[Any]:
    """AvgPoolGrad(shape, dy): each pixel of a window gets dy divided by the number of the window's pixels in the image."""
    _, dy = inputs
    size, strides = tuple(op.get_attr("ksize")[1:3]), tuple(op.get_attr("strides")[1:3])
    image = (int(op.outputs[0].shape[1]), int(op.outputs[0].shape[2]))
    windows = Windows(size, strides, (1, 1), same_or_valid(op), image)
    with tf.init_scope():
        inside = windows.pad(tf.ones([1, *image, 1]), 0.0)
        pixels = tf.add_n([tap for row in windows.taps(inside) for tap in row]).numpy()
    share = dy * tf.constant(1.0 / pixels)
    return [windows.back([[share] * size[1] for _ in range(size[0])])]
