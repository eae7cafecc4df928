"""Gradients of image resizing, and bicubic resizing.

Resizing is linear and separable: one matrix along the height and one along the width.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from umbel_server.compiler.lowerings import lowers


@lowers("ResizeNearestNeighborGrad")
def resize_nearest_grad(op: Any, inputs: list[Any]) -> list[Any]:
    """ResizeNearestNeighborGrad(dy) = the two matrices of the resizing, transposed, times dy."""
    return [_transposed(op, inputs[0], tf.raw_ops.ResizeNearestNeighbor)]


@lowers("ResizeBilinearGrad")
def resize_bilinear_grad(op: Any, inputs: list[Any]) -> list[Any]:
    """ResizeBilinearGrad(dy) = the two matrices of the resizing, transposed, times dy."""
    return [_transposed(op, inputs[0], tf.raw_ops.ResizeBilinear)]


@lowers("ResizeBicubic")
def resize_bicubic(op: Any, inputs: list[Any]) -> list[Any]:
    """ResizeBicubic(x) = the matrices of bicubic weights along height and width, times x."""
    image = inputs[0]
    (_, high, wide, _), (_, tall, broad, _) = image.shape, op.outputs[0].shape
    down, across = _matrices(op, tf.raw_ops.ResizeBicubic, (int(high), int(wide)), (int(tall), int(broad)))
    return [_along_both(down.T, across.T, image)]


@lowers("ResizeBicubicGrad")
def resize_bicubic_grad(op: Any, inputs: list[Any]) -> list[Any]:
    """ResizeBicubicGrad(dy) = the two matrices of the resizing, transposed, times dy."""
    return [_transposed(op, inputs[0], tf.raw_ops.ResizeBicubic)]


def _transposed(op: Any, dy: Any, resize: Callable[..., Any]) -> Any:
    (_, high, wide, _), (_, tall, broad, _) = op.outputs[0].shape, dy.shape
    down, across = _matrices(op, resize, (int(high), int(wide)), (int(tall), int(broad)))
    return _along_both(down, across, dy)


def _matrices(
    op: Any, resize: Callable[..., Any], small: tuple[int, int], large: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The weight of each pixel of an image of size `small` in each pixel of size `large`, along height and along width."""
    options = {name: op.get_attr(name) for name in ("align_corners", "half_pixel_centers")}
    (high, wide), (tall, broad) = small, large
    with tf.init_scope():
        down = resize(images=tf.eye(high)[:, :, tf.newaxis, tf.newaxis], size=[tall, 1], **options)
        across = resize(images=tf.eye(wide)[:, tf.newaxis, :, tf.newaxis], size=[1, broad], **options)
        return tf.reshape(down, [high, tall]).numpy(), tf.reshape(across, [wide, broad]).numpy()


def _along_both(down: NDArray[np.float32], across: NDArray[np.float32], image: Any) -> Any:
    _, tall, broad, channels = (-1 if n is None else int(n) for n in image.shape)
    rows = tf.matmul(tf.constant(down), tf.reshape(image, [-1, tall, broad * channels]))
    columns = tf.matmul(tf.constant(across), tf.reshape(rows, [-1, broad, channels]))
    return tf.reshape(columns, [-1, len(down), len(across), channels])
