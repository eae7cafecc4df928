"""Picking rows, and its gradient."""

from typing import Any

import tensorflow as tf

from umbel_server.compiler.lowerings import lowers


@lowers("UnsortedSegmentSum")
def unsorted_segment_sum(op: Any, inputs: list[Any]) -> list[Any]:
    """Rows of the same segment are added: SCATTER_ND adds what falls on one row."""
    data, segments, _ = inputs
    rank = len(segments.shape)
    rows = tf.reshape(data, [-1, *(int(n) for n in data.shape[rank:])])
    ids = tf.reshape(tf.cast(segments, tf.int32), [-1, 1])
    return [tf.scatter_nd(ids, rows, [int(n) for n in op.outputs[0].shape])]


@lowers("InTopKV2")
def in_top_k(_op: Any, inputs: list[Any]) -> list[Any]:
    """In the top k: fewer than k values are greater than the target's, and the target's is finite."""
    predictions, targets, k = inputs
    picked = tf.one_hot(targets, int(predictions.shape[1]))
    own = tf.reduce_sum(tf.where(picked > 0.0, predictions, tf.zeros_like(predictions)), axis=1, keepdims=True)
    ahead = tf.reduce_sum(tf.cast(predictions > own, tf.int32), axis=1)
    return [tf.less(ahead, tf.cast(k, tf.int32))]
