"""Ops on indexed rows: sums of segments, top-k membership, scatter, counts, and search in sorted values."""

from typing import Any

import tensorflow as tf

from umbel_server.compiler.errors import CompileError
from umbel_server.compiler.lowerings import lowers


@lowers("UnsortedSegmentSum")
def unsorted_segment_sum(op: Any, inputs: list[Any]) -> list[Any]:
    """UnsortedSegmentSum(data, segments) = SCATTER_ND of the rows, which adds rows with the same index."""
    data, segments, _ = inputs
    rank = len(segments.shape)
    rows = tf.reshape(data, [-1, *(int(n) for n in data.shape[rank:])])
    ids = tf.reshape(tf.cast(segments, tf.int32), [-1, 1])
    return [tf.scatter_nd(ids, rows, [int(n) for n in op.outputs[0].shape])]


@lowers("InTopKV2")
def in_top_k(_op: Any, inputs: list[Any]) -> list[Any]:
    """InTopKV2(predictions, targets, k) = fewer than k predictions in the row are greater than the target's."""
    predictions, targets, k = inputs
    picked = tf.one_hot(targets, int(predictions.shape[1]))
    own = tf.reduce_sum(tf.where(picked > 0.0, predictions, tf.zeros_like(predictions)), axis=1, keepdims=True)
    ahead = tf.reduce_sum(tf.cast(predictions > own, tf.int32), axis=1)
    return [tf.less(ahead, tf.cast(k, tf.int32))]


@lowers("TensorScatterAdd")
def tensor_scatter_add(_op: Any, inputs: list[Any]) -> list[Any]:
    """TensorScatterAdd(x, indices, updates) = x + SCATTER_ND of the updates, which adds updates with the same index."""
    x, indices, updates = inputs
    return [x + _scattered(x, indices, updates)]


@lowers("TensorScatterSub")
def tensor_scatter_sub(_op: Any, inputs: list[Any]) -> list[Any]:
    """TensorScatterSub(x, indices, updates) = x - SCATTER_ND of the updates."""
    x, indices, updates = inputs
    return [x - _scattered(x, indices, updates)]


@lowers("TensorScatterUpdate")
def tensor_scatter_update(_op: Any, inputs: list[Any]) -> list[Any]:
    """TensorScatterUpdate(x, indices, updates) = SCATTER_ND of the updates where an index points, else x."""
    x, indices, updates = inputs
    placed = _scattered(x, indices, tf.ones_like(updates, tf.float32))
    return [tf.where(placed > 0.0, _scattered(x, indices, updates), x)]


def _scattered(x: Any, indices: Any, updates: Any) -> Any:
    shape = x.shape.as_list() if x.shape.is_fully_defined() else tf.shape(x)
    return tf.scatter_nd(tf.cast(indices, tf.int32), updates, shape)


@lowers("DenseBincount")
def dense_bincount(op: Any, inputs: list[Any]) -> list[Any]:
    """DenseBincount(ids, size, weights) = the sum of one-hot rows of the ids, times their weights; at most 1 when binary.

    Raises CompileError when the size depends on the values.
    """
    ids, _, weights = inputs
    least, most = _bounds(op.inputs[1])
    if least != most:
        raise CompileError(
            "has a size that depends on its values; give CategoryEncoding its num_tokens, or use keras.ops.one_hot"
        )
    dtype = op.outputs[0].dtype
    rows = tf.one_hot(tf.cast(ids, tf.int32), int(most), dtype=dtype)
    if 0 not in weights.shape.as_list():
        rows *= tf.cast(weights, dtype)[..., tf.newaxis]
    counted = tf.reduce_sum(rows, axis=-2)
    return [tf.minimum(counted, tf.ones_like(counted)) if op.get_attr("binary_output") else counted]


def _bounds(size: Any) -> tuple[float, float]:
    """The lower and upper bound of a size in the traced graph."""
    known = tf.get_static_value(size)
    if known is not None:
        return float(known), float(known)
    if size.op.type in ("Identity", "Cast"):
        return _bounds(size.op.inputs[0])
    if size.op.type in ("Minimum", "Maximum"):
        (low, high), (least, most) = (_bounds(value) for value in size.op.inputs)
        pick = min if size.op.type == "Minimum" else max
        return pick(low, least), pick(high, most)
    return 0.0, float("inf")


@lowers("LowerBound")
def lower_bound(_op: Any, inputs: list[Any]) -> list[Any]:
    """LowerBound(sorted, x) = the number of sorted values that are less than x."""
    held, x = inputs
    return [tf.reduce_sum(tf.cast(held[:, tf.newaxis, :] < x[..., tf.newaxis], tf.int32), axis=-1)]


@lowers("UpperBound")
def upper_bound(_op: Any, inputs: list[Any]) -> list[Any]:
    """UpperBound(sorted, x) = the number of sorted values that are at most x."""
    held, x = inputs
    return [tf.reduce_sum(tf.cast(held[:, tf.newaxis, :] <= x[..., tf.newaxis], tf.int32), axis=-1)]
