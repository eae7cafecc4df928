"""Gradients of pooling."""

from typing import Any

import tensorflow as tf

from umbel_server.compiler.lowerings import lowers
from umbel_server.compiler.lowerings.windows import Windows, same_or_valid


@lowers("MaxPoolGrad")
def max_pool_grad(op: Any, inputs: list[Any]) -> list[Any]:
    """MaxPoolGrad(x, y, dy): each window's dy goes to its first pixel (row by row) that equals its maximum y."""
    x, y, dy = inputs
    size, strides = tuple(op.get_attr("ksize")[1:3]), tuple(op.get_attr("strides")[1:3])
    image = (int(x.shape[1]), int(x.shape[2]))
    windows = Windows(size, strides, (1, 1), same_or_valid(op), image)
    padded = windows.pad(x, float(x.dtype.min))
    zeros = tf.zeros_like(dy)
    left = tf.ones_like(dy)
    pieces: list[list[Any]] = []
    for i in range(size[0]):
        row = []
        for j in range(size[1]):
            chosen = tf.where(tf.equal(windows.tap(padded, i, j), y), left, zeros)
            left = left - chosen
            row.append(chosen * dy)
        pieces.append(row)
    if size == strides and windows.margins == ((0, 0), (0, 0)):
        return [_tile(pieces, windows)]
    return [tf.add_n([windows.untap(piece, i, j) for i, row in enumerate(pieces) for j, piece in enumerate(row)])]


def _tile(pieces: list[list[Any]], windows: Windows) -> Any:
    """Windows that neither overlap nor leave the image: their pixels side by side are the image but for a margin."""
    batch, down, across, channels = (int(n) for n in pieces[0][0].shape)
    high, wide = windows.size
    rows = [tf.reshape(tf.stack(row, axis=3), [batch, down, 1, across * wide * channels]) for row in pieces]
    image = tf.reshape(tf.concat(rows, axis=2), [batch, down * high, across * wide, channels])
    short = windows.image[0] - down * high, windows.image[1] - across * wide
    return tf.pad(image, [[0, 0], [0, short[0]], [0, short[1]], [0, 0]]) if any(short) else image


@lowers("AvgPoolGrad")
def avg_pool_grad(op: Any, inputs: list[Any]) -> list[Any]:
    """AvgPoolGrad(shape, dy): each pixel of a window gets dy over the window's pixels inside the image."""
    _, dy = inputs
    size, strides = tuple(op.get_attr("ksize")[1:3]), tuple(op.get_attr("strides")[1:3])
    image = (int(op.outputs[0].shape[1]), int(op.outputs[0].shape[2]))
    windows = Windows(size, strides, (1, 1), same_or_valid(op), image)
    with tf.init_scope():
        inside = windows.pad(tf.ones([1, *image, 1]), 0.0)
        pixels = tf.add_n([windows.tap(inside, i, j) for i in range(size[0]) for j in range(size[1])]).numpy()
    share = dy * tf.constant(1.0 / pixels)
    pieces = [[share] * size[1] for _ in range(size[0])]
    if size == strides and windows.margins == ((0, 0), (0, 0)):
        return [_tile(pieces, windows)]
    return [tf.add_n([windows.untap(piece, i, j) for i, row in enumerate(pieces) for j, piece in enumerate(row)])]
