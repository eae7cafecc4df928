"""Convolutions with stride 1 by short products along the height; see short_products.py.

The image's columns are transformed and then cut into `pieces`, one for each column s of the kernel. The windows of a piece
begin at s, s + k, s + 2k, ..., where k is the kernel's width. They lie one after the other in memory, so a slice is enough
and no window is copied. A piece has the shape [products, batch * windows, k * channels].
"""

from typing import Any

import numpy as np
import tensorflow as tf

from umbel_server.compiler.lowerings.kept import kept
from umbel_server.compiler.lowerings.matmul import added
from umbel_server.compiler.lowerings.short_products import ShortProducts, count_of, short_products
from umbel_server.compiler.lowerings.windows import Windows

_PACKING = 22
"""The cost of packing a product's second factor, which XNNPACK does for every piece: that of so many rows (measured)."""
_WORTH = 0.9
"""The highest cost at which short products are used, as a share of the cost of the plain convolution."""


def pays(windows: Windows, batch: int) -> bool:
    """Whether short products are faster than the plain convolution: the transformed kernel must be used often enough."""
    if (windows.strides, windows.dilations) != ((1, 1), (1, 1)) or windows.size[0] < 3:
        return False
    rows, taps, wide = windows.count[0], windows.size[0], windows.size[1]
    uses = batch * _groups(windows) * wide
    return count_of(rows, taps) * (uses + _PACKING * wide) < _WORTH * rows * taps * uses


def convolve(windows: Windows, x: Any, kernel: Any) -> Any:
    """y = A ((G w) * (B x)) in every column of pixels; A, G and B are the matrices of ShortProducts."""
    made = _products(windows)
    taps = _taps(made, kernel)
    parts = [_along_columns(made.outer, tf.matmul(piece, taps)) for piece in kept(_pieces, x, windows)]
    high, wide = windows.count
    batch, outer = int(x.shape[0]), int(kernel.shape[3])
    beside = parts[0] if len(parts) == 1 else tf.concat([tf.reshape(p, [-1, outer]) for p in parts], axis=1)
    rows = tf.reshape(beside, [high, batch, -1])[:, :, : wide * outer]
    return _turned(tf.reshape(rows, [high, batch, wide, outer]))


def filter_slope(windows: Windows, x: Any, dy: Any) -> Any:
    """dw = G^T sum((B x) * (A^T dy)): the transpose of `convolve` in w."""
    made = _products(windows)
    pairs = zip(kept(_pieces, x, windows), kept(_slopes, dy, windows), strict=True)
    taps = added([tf.matmul(piece, slope, transpose_a=True) for piece, slope in pairs])
    slope = _along_columns(made.taps_to.T, taps)
    return tf.reshape(slope, [*windows.size, int(x.shape[3]), int(dy.shape[3])])


def input_slope(windows: Windows, dy: Any, kernel: Any) -> Any:
    """dx = B^T ((G w) * (A^T dy)): the transpose of `convolve` in x."""
    batch, inner, wide = int(dy.shape[0]), int(kernel.shape[2]), windows.size[1]
    made = _products(windows)
    taps = _taps(made, kernel)
    shape = [len(made.inner) * batch, -1]
    parts = []
    for s, slope in enumerate(kept(_slopes, dy, windows)):
        flat = tf.reshape(tf.matmul(slope, taps, transpose_b=True), shape)
        parts.append(tf.pad(flat, [[0, 0], [s * inner, (wide - 1 - s) * inner]]) if wide > 1 else flat)
    (high, broad), before = windows.image, windows.margins[1][0]
    rows = tf.reshape(_along_columns(made.inner.T, added(parts)), [high, batch, -1])
    inside = rows[:, :, before * inner : (before + broad) * inner]
    return _turned(tf.reshape(inside, [high, batch, broad, inner]))


def _products(windows: Windows) -> ShortProducts:
    return short_products(windows.image[0], windows.margins[0][0], windows.count[0], windows.size[0])


def _groups(windows: Windows) -> int:
    """The number of windows of one piece in a row of the image; they do not overlap."""
    return -(-windows.count[1] // windows.size[1])


def _pieces(x: Any, windows: Windows) -> list[Any]:
    batch, channels = int(x.shape[0]), int(x.shape[3])
    made, wide, groups = _products(windows), windows.size[1], _groups(windows)
    (high, broad), before = windows.image, windows.margins[1][0]
    after = (groups + 1) * wide - 1 - before - broad
    flat = tf.reshape(_turned(x), [high * batch, broad * channels])
    padded = tf.pad(flat, [[0, 0], [before * channels, after * channels]]) if before or after else flat
    columns = _along_columns(made.inner, tf.reshape(padded, [high, -1]))
    rows = tf.reshape(columns, [len(made.inner), batch, -1])
    size = groups * wide * channels
    starts = [s * channels for s in range(wide)]
    cut = [rows if wide == 1 else rows[:, :, start : start + size] for start in starts]
    return [tf.reshape(piece, [len(made.inner), -1, wide * channels]) for piece in cut]


def _slopes(dy: Any, windows: Windows) -> list[Any]:
    batch, channels = int(dy.shape[0]), int(dy.shape[3])
    made, wide, groups = _products(windows), windows.size[1], _groups(windows)
    high, broad = windows.count
    flat = tf.reshape(_turned(dy), [high * batch, broad * channels])
    after = groups * wide - broad
    padded = tf.pad(flat, [[0, 0], [0, after * channels]]) if after else flat
    columns = tf.reshape(
        _along_columns(made.outer.T, tf.reshape(padded, [high, -1])), [len(made.inner), -1, wide * channels]
    )
    starts = [s * channels for s in range(wide)]
    return [columns if wide == 1 else columns[:, :, start : start + channels] for start in starts]


def _taps(made: ShortProducts, kernel: Any) -> Any:
    """G w: [points, width * channels, channels of y]."""
    _, wide, inner, outer = (int(n) for n in kernel.shape)
    return tf.reshape(_along_columns(made.taps_to, kernel), [len(made.inner), wide * inner, outer])


def _along_columns(matrix: np.ndarray[Any, Any], value: Any) -> Any:
    """`matrix` times `value`; the product sums over the first axes of `value`."""
    flat = tf.reshape(value, [1, matrix.shape[1], -1])
    return tf.squeeze(tf.matmul(tf.constant(np.ascontiguousarray(matrix[np.newaxis])), flat), 0)


def _turned(images: Any) -> Any:
    """[batch, height, ...] as [height, batch, ...], and back."""
    return tf.transpose(images, [1, 0, 2, 3])
