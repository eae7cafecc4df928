"""Gradients of image resizing."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from umbel_server.compiler.lowerings import lowers


@lowers("ResizeNearestNeighborGrad")
def resize_nearest_grad(op: Any, inputs: list[Any]) -> list[Any]:
    """Resizing is a matrix along height and one along width; its gradient is the two transposed."""
    return [_transposed(op, inputs[0], tf.raw_ops.ResizeNearestNeighbor)]


@lowers("ResizeBilinearGrad")
def resize_bilinear_grad(op: Any, inputs: list[Any]) -> list[Any]:
    """As for nearest neighbours: bilinear weights are a product of a matrix along height and one along width."""
    return [_transposed(op, inputs[0], tf.raw_ops.ResizeBilinear)]


def _transposed(op: Any, dy: Any, resize: Callable[..., Any]) -> Any:
    _, high, wide, channels = (int(n) for n in op.outputs[0].shape)
    _, tall, broad, _ = (int(n) for n in dy.shape)
    options = {name: op.get_attr(name) for name in ("align_corners", "half_pixel_centers")}
    with tf.init_scope():
        down = resize(images=tf.eye(high)[:, :, tf.newaxis, tf.newaxis], size=[tall, 1], **options)
        across = resize(images=tf.eye(wide)[:, tf.newaxis, :, tf.newaxis], size=[1, broad], **options)
        down, across = tf.reshape(down, [high, tall]).numpy(), tf.reshape(across, [wide, broad]).numpy()
    rows = tf.matmul(tf.constant(down), tf.reshape(dy, [-1, tall, broad * channels]))
    columns = tf.matmul(tf.constant(across), tf.reshape(rows, [-1, broad, channels]))
    return tf.reshape(columns, [-1, high, wide, channels])
