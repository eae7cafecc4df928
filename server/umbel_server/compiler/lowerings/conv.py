"""Gradients of convolutions."""

from typing import Any

import tensorflow as tf

from umbel_server.compiler.lowerings import lowers
from umbel_server.compiler.lowerings.windows import Windows, same_or_valid


@lowers("Conv2DBackpropFilter")
def conv2d_backprop_filter(op: Any, inputs: list[Any]) -> list[Any]:
    """dW[i, j] = x at tap (i, j) of every window, transposed, times dy: one matmul a tap, all windows at once."""
    x, _, dy = inputs
    kernel = [int(n) for n in op.outputs[0].shape]
    _, height, width, channels = (int(n) for n in x.shape)
    windows = Windows(
        size=(kernel[0], kernel[1]),
        strides=tuple(op.get_attr("strides")[1:3]),
        dilations=tuple(op.get_attr("dilations")[1:3]),
        padding=same_or_valid(op),
        image=(height, width),
    )
    padded = windows.pad(x, 0.0)
    columns = tf.reshape(dy, [-1, kernel[3]])
    taps = [
        tf.matmul(tf.reshape(windows.tap(padded, i, j), [-1, channels]), columns, transpose_a=True)
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    return [tf.reshape(tf.concat(taps, axis=0), kernel)]
