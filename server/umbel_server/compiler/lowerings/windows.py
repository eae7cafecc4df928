"""Sliding windows over an image as strided slices: the geometry that convolution and pooling share."""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass(frozen=True)
class Windows:
    """Windows of `size` taps over an `image` (height, width), as TensorFlow pads and strides them."""

    size: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    padding: str
    image: tuple[int, int]

    @property
    def extent(self) -> tuple[int, int]:
        """Pixels that one window spans."""
        return _pair(lambda a: (self.size[a] - 1) * self.dilations[a] + 1)

    @property
    def count(self) -> tuple[int, int]:
        """Windows along height and width."""
        if self.padding == "SAME":
            return _pair(lambda a: -(-self.image[a] // self.strides[a]))
        return _pair(lambda a: (self.image[a] - self.extent[a]) // self.strides[a] + 1)

    @property
    def margins(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels to add (before, after) along height and width; `after` is never negative."""
        needed = _pair(lambda a: max(0, (self.count[a] - 1) * self.strides[a] + self.extent[a] - self.image[a]))
        before = _pair(lambda a: needed[a] // 2 if self.padding == "SAME" else 0)
        return (before[0], needed[0] - before[0]), (before[1], needed[1] - before[1])

    def pad(self, x: Any, value: float) -> Any:
        """`x` [batch, height, width, channels] with its margins filled by `value`."""
        if self.margins == ((0, 0), (0, 0)):
            return x
        return tf.pad(x, [[0, 0], list(self.margins[0]), list(self.margins[1]), [0, 0]], constant_values=value)

    def tap(self, padded: Any, i: int, j: int) -> Any:
        """Pixel (i, j) of every window: [batch, windows down, windows across, channels]."""
        top, left = i * self.dilations[0], j * self.dilations[1]
        bottom = top + (self.count[0] - 1) * self.strides[0] + 1
        right = left + (self.count[1] - 1) * self.strides[1] + 1
        return padded[:, top : bottom : self.strides[0], left : right : self.strides[1], :]

    def untap(self, values: Any, i: int, j: int) -> Any:
        """The transpose of `tap`: an image, zero but at pixel (i, j) of every window, cut to the unpadded image."""
        batch, down, across, channels = (int(n) for n in values.shape)
        high, wide = self.strides
        if wide > 1:
            columns = tf.reshape(values, [batch, down * across, 1, channels])
            values = tf.reshape(tf.pad(columns, [[0, 0], [0, 0], [0, wide - 1], [0, 0]]), [batch, down, -1, channels])
        if high > 1:
            rows = tf.reshape(values, [batch, down, 1, across * wide * channels])
            values = tf.pad(rows, [[0, 0], [0, 0], [0, high - 1], [0, 0]])
            values = tf.reshape(values, [batch, down * high, across * wide, channels])
        top, left = i * self.dilations[0], j * self.dilations[1]
        total = _pair(lambda a: self.image[a] + sum(self.margins[a]))
        keep = min(down * high, total[0] - top), min(across * wide, total[1] - left)
        values = values[:, : keep[0], : keep[1], :]
        image = tf.pad(values, [[0, 0], [top, total[0] - top - keep[0]], [left, total[1] - left - keep[1]], [0, 0]])
        (above, _), (before, _) = self.margins
        return image[:, above : above + self.image[0], before : before + self.image[1], :]


def same_or_valid(op: Any) -> str:
    """The op's padding as "SAME" or "VALID"."""
    padding = op.get_attr("padding")
    return padding.decode() if isinstance(padding, bytes) else str(padding)


def _pair(value: Any) -> tuple[int, int]:
    return value(0), value(1)
