"""Ops on shapes, whose values are known when a plan is compiled, and gradients of slices and padding."""

from typing import Any

import numpy as np
import tensorflow as tf

from umbel_server.compiler.errors import CompileError
from umbel_server.compiler.lowerings import lowers


@lowers("ShapeN")
def shape_n(op: Any, inputs: list[Any]) -> list[Any]:
    """ShapeN(x...) = the shape of each x, as a constant when it is static."""
    return [
        tf.constant(x.shape.as_list(), output.dtype) if x.shape.is_fully_defined() else tf.shape(x, output.dtype)
        for x, output in zip(inputs, op.outputs, strict=True)
    ]


@lowers("Shape")
def shape(op: Any, inputs: list[Any]) -> list[Any]:
    """Shape(x) = the shape of x, as a constant when it is static."""
    return shape_n(op, inputs)


@lowers("BroadcastGradientArgs")
def broadcast_gradient_args(op: Any, inputs: list[Any]) -> list[Any]:
    """BroadcastGradientArgs(a, b) = for each of two shapes, the axes along which it is repeated to broadcast them."""
    a, b = (list(_known(value)) for value in inputs)
    rank = max(len(a), len(b))
    a, b = [1] * (rank - len(a)) + a, [1] * (rank - len(b)) + b
    repeated = ([i for i in range(rank) if one[i] == 1 and other[i] != 1] for one, other in ((a, b), (b, a)))
    return [tf.constant(axes, output.dtype, [len(axes)]) for axes, output in zip(repeated, op.outputs, strict=True)]


@lowers("ConcatOffset")
def concat_offset(op: Any, inputs: list[Any]) -> list[Any]:
    """ConcatOffset(axis, shapes...) = the index at which each piece of a concatenation begins."""
    axis, *shapes = (_known(value) for value in inputs)
    starts, offset = [], 0
    for piece in shapes:
        start = np.zeros_like(piece)
        start[int(axis)] = offset
        offset += int(piece[int(axis)])
        starts.append(tf.constant(start))
    return starts


@lowers("InvertPermutation")
def invert_permutation(op: Any, inputs: list[Any]) -> list[Any]:
    """InvertPermutation(p) = the permutation that undoes p."""
    return [tf.constant(np.argsort(_known(inputs[0])), op.outputs[0].dtype)]


@lowers("ListDiff")
def list_diff(op: Any, inputs: list[Any]) -> list[Any]:
    """ListDiff(a, b) = the elements of a that are not in b, and their indices in a."""
    kept = np.flatnonzero(~np.isin(*(_known(value) for value in inputs)))
    values = _known(inputs[0])[kept]
    return [tf.constant(made, out.dtype, made.shape) for made, out in zip((values, kept), op.outputs, strict=True)]


@lowers("DynamicStitch")
def dynamic_stitch(op: Any, inputs: list[Any]) -> list[Any]:
    """DynamicStitch(indices..., data...) = a vector with each piece of data at its indices; all are constants."""
    values = [_known(value) for value in inputs]
    half = len(values) // 2
    size = max(int(np.max(ids, initial=-1)) for ids in values[:half]) + 1
    whole = np.zeros(size, values[half].dtype)
    for ids, data in zip(values[:half], values[half:], strict=True):
        whole[ids] = data
    return [tf.constant(whole)]


@lowers("StridedSliceGrad")
def strided_slice_grad(op: Any, inputs: list[Any]) -> list[Any]:
    """StridedSliceGrad(..., dy) = dy with zeros at the elements that the slice skipped."""
    sizes, begin, end, strides = (_known(value) for value in inputs[:4])
    dy = inputs[4]
    masks = {
        n: op.get_attr(n) for n in ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
    }
    rank, shape_of = len(sizes), [int(n) for n in sizes]
    bounds: list[tuple[int, int, int]] = []
    entries = len(begin)
    real = sum(1 for i in range(entries) if not masks["new_axis_mask"] >> i & 1 and not masks["ellipsis_mask"] >> i & 1)
    for i in range(entries):
        if masks["ellipsis_mask"] >> i & 1:
            bounds += [(0, shape_of[len(bounds) + k], 1) for k in range(rank - real)]
        elif not masks["new_axis_mask"] >> i & 1:
            bounds.append(_bounds(i, shape_of[len(bounds)], begin, end, strides, masks))
    bounds += [(0, size, 1) for size in shape_of[len(bounds) :]]
    counts = [len(range(*bound)) for bound in bounds]
    value = tf.reshape(dy, counts)
    for axis, (start, _, step) in enumerate(bounds):
        if step < 0:
            value = tf.reverse(value, [axis])
            start, step = start + (counts[axis] - 1) * step, -step
        value = spread(value, axis, step)
        used = (counts[axis] - 1) * step + 1 if counts[axis] else 0
        padding = [[0, 0] for _ in range(rank)]
        padding[axis] = [start, shape_of[axis] - start - used]
        if padding[axis] != [0, 0]:
            value = tf.pad(value, padding)
    return [value]


@lowers("MirrorPadGrad")
def mirror_pad_grad(op: Any, inputs: list[Any]) -> list[Any]:
    """MirrorPadGrad(dy, padding) = dy without its margins; each margin is reversed and added to its source pixels."""
    value, margins = inputs[0], _known(inputs[1])
    edge = 1 if op.get_attr("mode") == b"REFLECT" else 0  # whether the pixel at the edge itself was left out
    for axis, (before, after) in enumerate(margins.tolist()):
        size = int(value.shape[axis]) - before - after
        start, whole, end = tf.split(value, [before, size, after], axis=axis)
        for margin, first in ((start, edge), (end, size - edge - after)):
            length = int(margin.shape[axis])
            if length:
                padding = [[0, 0] for _ in margins]
                padding[axis] = [first, size - first - length]
                whole = whole + tf.pad(tf.reverse(margin, [axis]), padding)
        value = whole
    return [value]


@lowers("Roll")
def roll(op: Any, inputs: list[Any]) -> list[Any]:
    """Roll(x, shift, axis) = x shifted along the axis; elements that pass the end come in at the start."""
    value = inputs[0]
    shifts, axes = (np.reshape(_known(given), -1) for given in inputs[1:])
    for shift, axis in zip(shifts, axes, strict=True):
        size = int(value.shape[int(axis)])
        cut = -int(shift) % size
        if cut:
            value = tf.concat(tf.split(value, [cut, size - cut], axis=int(axis))[::-1], axis=int(axis))
    return [value]


def _bounds(i: int, size: int, begin: Any, end: Any, strides: Any, masks: dict[str, int]) -> tuple[int, int, int]:
    step = int(strides[i])
    if masks["shrink_axis_mask"] >> i & 1:
        start = int(begin[i]) % size
        return start, start + 1, 1
    first = None if masks["begin_mask"] >> i & 1 else int(begin[i])
    last = None if masks["end_mask"] >> i & 1 else int(end[i])
    return slice(first, last, step).indices(size)


def spread(value: Any, axis: int, step: int) -> Any:
    """`value` with step - 1 zeros between neighbouring elements along `axis`."""
    if step == 1:
        return value
    shape = [int(n) for n in value.shape]
    flat = tf.reshape(value, [_product(shape[:axis]), shape[axis], 1, _product(shape[axis + 1 :])])
    wide = tf.pad(flat, [[0, 0], [0, 0], [0, step - 1], [0, 0]])
    whole = tf.reshape(wide, [*shape[:axis], shape[axis] * step, *shape[axis + 1 :]])
    return tf.split(whole, [shape[axis] * step - step + 1, step - 1], axis=axis)[0]


def _product(sizes: list[int]) -> int:
    return int(np.prod(sizes, dtype=np.int64))


def _known(value: Any) -> Any:
    known = tf.get_static_value(value)
    if known is None:
        raise CompileError("works on a shape that is not known when compiling; give every axis but the batch a size")
    return known
