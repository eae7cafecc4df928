"""Convolutions whose filter is a variable, and their gradients."""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from umbel_server.compiler.lowerings import conv_products, lowers
from umbel_server.compiler.lowerings.kept import kept
from umbel_server.compiler.lowerings.matmul import added, by_rows, rows_by_rows
from umbel_server.compiler.lowerings.shape import spread
from umbel_server.compiler.lowerings.windows import Windows, same_or_valid

_COLUMN_BYTES = 32 << 20
_FEW_CHANNELS = 8


@lowers("Conv2D")
def conv2d(op: Any, inputs: list[Any]) -> list[Any]:
    """Conv2D = the windows as rows of a matrix, times the filter as a matrix.

    XNNPACK has no convolution whose filter is a variable.
    """
    x, kernel = inputs
    groups = int(x.shape[3]) // int(kernel.shape[2])
    return [_by_group(lambda part, slab: _convolve(op, part, slab), x, kernel, groups)]


def _by_group(make: Callable[[Any, Any], Any], a: Any, b: Any, groups: int) -> Any:
    """Apply `make` to the channels of each group, and concatenate the results along the channels."""
    if groups == 1:
        return make(a, b)
    pairs = zip(tf.split(a, groups, axis=3), tf.split(b, groups, axis=3), strict=True)
    return tf.concat([make(part, slab) for part, slab in pairs], axis=3)


def _convolve(op: Any, x: Any, kernel: Any) -> Any:
    shape = [int(n) for n in kernel.shape]
    windows = None if x.shape[0] is None else _windows(op, (int(x.shape[1]), int(x.shape[2])), shape)
    constant = tf.get_static_value(kernel) is not None
    if (
        windows is not None
        and not constant
        and shape[2] >= _FEW_CHANNELS
        and conv_products.pays(windows, int(x.shape[0]))
    ):
        return conv_products.convolve(windows, x, kernel)
    if windows is not None and not constant and _as_rows(x, windows):
        rows, matrix = kept(_tap_rows, x, windows), tf.reshape(kernel, [1, -1, shape[3]])
        return tf.reshape(tf.matmul(rows, matrix, transpose_a=True), [int(x.shape[0]), *windows.count, shape[3]])
    if windows is None or constant or not _as_columns(x, windows):
        options = {"strides": op.get_attr("strides"), "dilations": op.get_attr("dilations")}
        return tf.nn.conv2d(x, kernel, padding=same_or_valid(op), **options)
    rows = by_rows(_columns(x, windows), tf.reshape(kernel, [-1, shape[3]]))
    return tf.reshape(rows, [int(x.shape[0]), *windows.count, shape[3]])


@lowers("Conv2DBackpropFilter")
def conv2d_backprop_filter(op: Any, inputs: list[Any]) -> list[Any]:
    """dW = the windows as rows, transposed, times dy."""
    x, _, dy = inputs
    kernel = [int(n) for n in op.outputs[0].shape]
    windows = _windows(op, (int(x.shape[1]), int(x.shape[2])), kernel)
    groups = int(x.shape[3]) // kernel[2]
    return [_by_group(lambda part, slope: _filter_slope(windows, part, slope, kernel[:3]), x, dy, groups)]


@lowers("Conv2DBackpropInput")
def conv2d_backprop_input(op: Any, inputs: list[Any]) -> list[Any]:
    """dx = the sum over taps (i, j) of dy times W[i, j] transposed, added at the pixels that the tap has read."""
    sizes, kernel, dy = inputs
    shape, whole = [int(n) for n in kernel.shape], op.outputs[0].shape
    groups = int(whole[3]) // shape[2]
    dilations = op.get_attr("dilations")
    if dy.shape[0] is None and groups == 1 and set(dilations) != {1}:
        # The batch size is not fixed, as in inference: zeros between the filter's taps take the place of dilation.
        kernel = spread(spread(kernel, 0, int(dilations[1])), 1, int(dilations[2]))
        return [tf.nn.conv2d_transpose(dy, kernel, sizes, op.get_attr("strides"), same_or_valid(op))]
    plain = groups == 1 and set(dilations) == {1}
    if plain and (dy.shape[0] is None or set(op.get_attr("strides")) != {1}):
        return [tf.nn.conv2d_transpose(dy, kernel, sizes, op.get_attr("strides"), same_or_valid(op))]
    windows = _windows(op, (int(whole[1]), int(whole[2])), shape)
    back = _back_along_rows if windows.strides == (1, 1) else _back_by_taps
    if conv_products.pays(windows, int(dy.shape[0])):
        back = conv_products.input_slope
    return [_by_group(lambda slope, slab: back(windows, slope, slab), dy, kernel, groups)]


def _back_by_taps(windows: Windows, dy: Any, kernel: Any) -> Any:
    high, wide = windows.size
    batch, height, width, channels = (int(n) for n in dy.shape)
    rows = tf.reshape(dy, [-1, channels])

    def piece(i: int, j: int) -> Any:
        return tf.reshape(tf.matmul(rows, kernel[i, j], transpose_b=True), [batch, height, width, -1])

    return windows.back([[piece(i, j) for j in range(wide)] for i in range(high)])


def _back_along_rows(windows: Windows, dy: Any, kernel: Any) -> Any:
    """The gradient of the input with stride 1: one matmul over the taps of a row as columns, then a sum of shifted rows."""
    (above, _), (before, _) = windows.margins
    (down, across), (extent_down, extent_across) = windows.dilations, windows.extent
    high, wide, inner, outer = (int(n) for n in kernel.shape)
    batch, height, _, _ = (int(n) for n in dy.shape)
    tall, broad = windows.image
    left = extent_across - 1 - before
    right = broad + extent_across - 1 - left - windows.count[1]
    padded = tf.pad(dy, [[0, 0], [0, 0], [left, right], [0, 0]]) if left or right else dy
    starts = [extent_across - 1 - j * across for j in range(wide)]
    side_by_side = [padded[:, :, start : start + broad, :] for start in starts]
    columns = side_by_side[0] if wide == 1 else tf.concat(side_by_side, axis=3)
    matrix = tf.reshape(tf.transpose(kernel, [1, 3, 0, 2]), [wide * outer, high * inner])
    product = by_rows(tf.reshape(columns, [batch * height * broad, wide * outer]), matrix)
    product = tf.reshape(product, [batch, height, broad, high * inner])
    if high == 1:
        return product
    rows = [
        tf.pad(part, [[0, 0], [i * down, extent_down - 1 - i * down], [0, 0], [0, 0]])
        for i, part in enumerate(tf.split(product, high, axis=3))
    ]
    return added(rows)[:, above : above + tall]


def _as_columns(x: Any, windows: Windows) -> bool:
    """Whether to write the windows out as rows: there are enough channels to copy at once, and it takes not much memory."""
    many = windows.size == (1, 1) or int(x.shape[3]) >= _FEW_CHANNELS
    return many and _bytes(x, windows) <= _COLUMN_BYTES


def _as_rows(x: Any, windows: Windows) -> bool:
    """Whether to write the windows out as columns, a row for each tap and channel: better for few channels."""
    return int(x.shape[3]) < _FEW_CHANNELS and _bytes(x, windows) <= _COLUMN_BYTES


def _bytes(x: Any, windows: Windows) -> int:
    return 4 * int(x.shape[0]) * int(x.shape[3]) * math.prod([*windows.count, *windows.size])


def _tap_rows(x: Any, windows: Windows) -> Any:
    """Every window of `x` as a column: [1, taps * channels, windows]."""
    taps = [tap for row in windows.taps(windows.pad(x, 0.0)) for tap in row]
    shape = [int(x.shape[3]), int(x.shape[0]) * math.prod(windows.count)]
    turned = [tf.reshape(tap if shape[0] == 1 else tf.transpose(tap, [3, 0, 1, 2]), shape) for tap in taps]
    return tf.expand_dims(turned[0] if len(turned) == 1 else tf.concat(turned, axis=0), 0)


def _columns(x: Any, windows: Windows) -> Any:
    """Every window of `x` as a row: [windows, taps * channels]."""
    return kept(_write_columns, x, windows)


def _write_columns(x: Any, windows: Windows) -> Any:
    high, wide = windows.size
    shape = [int(x.shape[0]) * windows.count[0] * windows.count[1], high * wide * int(x.shape[3])]
    if windows.strides != (1, 1) or (high, wide) == (1, 1):
        taps = [tap for row in windows.taps(windows.pad(x, 0.0)) for tap in row]
        return tf.reshape(taps[0] if len(taps) == 1 else tf.concat(taps, axis=3), shape)
    beside = kept(_side_by_side, x, windows)
    down = [i * windows.dilations[0] for i in range(high)]
    images = [beside[:, start : start + windows.count[0]] for start in down]
    return tf.reshape(images[0] if high == 1 else tf.concat(images, axis=3), shape)


def _side_by_side(x: Any, windows: Windows) -> Any:
    """With stride 1, the taps of a row as channels: [batch, padded height, windows across, taps * channels]."""
    padded = windows.pad(x, 0.0)
    starts = [j * windows.dilations[1] for j in range(windows.size[1])]
    rows = [padded[:, :, start : start + windows.count[1], :] for start in starts]
    return rows[0] if len(rows) == 1 else tf.concat(rows, axis=3)


def _windows(op: Any, image: tuple[int, int], kernel: list[int]) -> Windows:
    return Windows(
        size=(kernel[0], kernel[1]),
        strides=tuple(op.get_attr("strides")[1:3]),
        dilations=tuple(op.get_attr("dilations")[1:3]),
        padding=same_or_valid(op),
        image=image,
    )


def _filter_slope(windows: Windows, x: Any, dy: Any, kernel: list[int]) -> Any:
    outer, channels = int(dy.shape[3]), int(x.shape[3])
    count = int(x.shape[0]) * windows.count[0] * windows.count[1]
    slopes = tf.reshape(dy, [count, outer])
    if channels >= _FEW_CHANNELS and conv_products.pays(windows, int(x.shape[0])):
        return conv_products.filter_slope(windows, x, dy)
    if _as_columns(x, windows):
        padded = windows.image[0] + sum(windows.margins[0])
        if windows.strides == (1, 1) and kernel[0] > 1 and 2 * padded <= 3 * windows.count[0]:
            return _slope_along_rows(windows, x, dy, kernel)
        return tf.reshape(rows_by_rows(_columns(x, windows), slopes), [*kernel, outer])
    if _as_rows(x, windows):
        product = tf.matmul(kept(_tap_rows, x, windows), tf.expand_dims(slopes, 0))
        return tf.reshape(product, [*kernel, outer])
    taps = [tap for row in windows.taps(windows.pad(x, 0.0)) for tap in row]
    products = [tf.matmul(tf.reshape(tap, [-1, channels]), slopes, transpose_a=True) for tap in taps]
    return tf.reshape(tf.concat(products, axis=0), [*kernel, outer])


def _slope_along_rows(windows: Windows, x: Any, dy: Any, kernel: list[int]) -> Any:
    """The gradient of the filter with stride 1, by one product.

    Its factors are x with the taps of a row as channels, and dy with its copies, shifted down for each row of taps, as
    channels.
    """
    high, wide, channels = kernel
    beside = kept(_side_by_side, x, windows)
    outer, tall = int(dy.shape[3]), int(beside.shape[1])
    tops = [i * windows.dilations[0] for i in range(high)]
    moved = [tf.pad(dy, [[0, 0], [top, tall - top - windows.count[0]], [0, 0], [0, 0]]) for top in tops]
    slopes = tf.reshape(tf.concat(moved, axis=3), [-1, high * outer])
    product = rows_by_rows(tf.reshape(beside, [-1, wide * channels]), slopes)
    return tf.transpose(tf.reshape(product, [wide, channels, high, outer]), [2, 0, 1, 3])
