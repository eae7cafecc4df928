"""Gradients of depthwise convolutions."""

from typing import Any

import tensorflow as tf

from umbel_server.compiler.lowerings import lowers
from umbel_server.compiler.lowerings.matmul import added
from umbel_server.compiler.lowerings.sums import total
from umbel_server.compiler.lowerings.windows import Windows, same_or_valid


@lowers("DepthwiseConv2dNativeBackpropFilter")
def depthwise_backprop_filter(op: Any, inputs: list[Any]) -> list[Any]:
    """dW[i, j, c, m] = the sum, over all windows, of x at tap (i, j) and channel c times dy at channel (c, m)."""
    x, _, dy = inputs
    high, wide, channels, multiplier = (int(n) for n in op.outputs[0].shape)
    windows = _windows(op, (int(x.shape[1]), int(x.shape[2])), (high, wide))
    spots = windows.taps(windows.pad(x, 0.0))
    slopes = [dy[..., m::multiplier] if multiplier > 1 else dy for m in range(multiplier)]
    taps = [
        tf.stack([total(spots[i][j] * slope, [0, 1, 2]) for slope in slopes], axis=1)
        for i in range(high)
        for j in range(wide)
    ]
    return [tf.reshape(tf.stack(taps), [high, wide, channels, multiplier])]


@lowers("DepthwiseConv2dNativeBackpropInput")
def depthwise_backprop_input(op: Any, inputs: list[Any]) -> list[Any]:
    """dx = the sum over taps (i, j) of dy times W[i, j], added at the pixels that the tap has read.

    With stride 1 it is a depthwise convolution.
    """
    _, kernel, dy = inputs
    high, wide, channels, multiplier = (int(n) for n in kernel.shape)
    image = (int(op.outputs[0].shape[1]), int(op.outputs[0].shape[2]))
    windows = _windows(op, image, (high, wide))
    slopes = [dy[..., m::multiplier] if multiplier > 1 else dy for m in range(multiplier)]
    if windows.strides == (1, 1):
        return [added([_flipped(windows, slope, kernel[..., m]) for m, slope in enumerate(slopes)])]

    def piece(i: int, j: int) -> Any:
        return added([slope * tf.reshape(kernel[i, j, :, m], [1, 1, 1, channels]) for m, slope in enumerate(slopes)])

    return [windows.back([[piece(i, j) for j in range(wide)] for i in range(high)])]


def _flipped(windows: Windows, dy: Any, kernel: Any) -> Any:
    """A depthwise convolution of the padded dy with the kernel reversed along height and width."""
    (above, _), (before, _) = windows.margins
    extent = windows.extent
    top, left = extent[0] - 1 - above, extent[1] - 1 - before
    bottom = windows.image[0] + extent[0] - 1 - top - windows.count[0]
    right = windows.image[1] + extent[1] - 1 - left - windows.count[1]
    padded = tf.pad(dy, [[0, 0], [top, bottom], [left, right], [0, 0]])
    turned = tf.expand_dims(tf.reverse(kernel, axis=[0, 1]), -1)
    return tf.nn.depthwise_conv2d(padded, turned, [1, 1, 1, 1], "VALID", dilations=windows.dilations)


def _windows(op: Any, image: tuple[int, int], size: tuple[int, int]) -> Windows:
    strides, dilations = op.get_attr("strides")[1:3], op.get_attr("dilations")[1:3]
    return Windows(size, tuple(strides), tuple(dilations), same_or_valid(op), image)
