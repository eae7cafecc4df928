"""Sliding windows over an image as strided slices: the geometry that convolution and pooling share."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import tensorflow as tf

_FEW_CHANNELS = 16


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
        """Pad `x` [batch, height, width, channels] with `value`: its margins, then up to a whole number of strides."""
        batch, height, width, channels = (int(n) for n in x.shape)
        (above, below), (before, after) = self.margins
        below += -(above + height + below) % self.strides[0]
        after += -(before + width + after) % self.strides[1]
        if not (above or below or before or after):
            return x
        if channels >= _FEW_CHANNELS:
            return tf.pad(x, [[0, 0], [above, below], [before, after], [0, 0]], constant_values=value)
        # Pixels and channels as one axis: padding then copies longer contiguous pieces.
        flat = tf.reshape(x, [batch, height, width * channels])
        padding = [[0, 0], [above, below], [before * channels, after * channels]]
        padded = tf.pad(flat, padding, constant_values=value)
        return tf.reshape(padded, [batch, above + height + below, before + width + after, channels])

    def taps(self, padded: Any) -> list[list[Any]]:
        """For each tap (i, j), that pixel of every window: [batch, windows down, windows across, channels]."""
        phases = self._phases(padded)
        return [[self._tap(phases, i, j) for j in range(self.size[1])] for i in range(self.size[0])]

    def back(self, pieces: list[list[Any]]) -> Any:
        """The transpose of `taps` and `pad`: the image with piece (i, j) added to pixel (i, j) of every window."""
        (high, wide), (above, _), (before, _) = self.strides, *self.margins
        total = _pair(lambda a: self.image[a] + sum(self.margins[a]))
        down, across = _pair(lambda a: -(-total[a] // self.strides[a]))
        rows = []
        for a in range(high):
            beside = [self._phase(pieces, a, b, down, across) for b in range(wide)]
            # Neighbouring pixels lie in memory as neighbouring channels do.
            rows.append(beside[0] if wide == 1 else tf.concat(beside, axis=3))
        batch, channels = int(rows[0].shape[0]), int(pieces[0][0].shape[3])
        flat = [tf.reshape(row, [batch, down, across * wide * channels]) for row in rows]
        whole = flat[0] if high == 1 else tf.concat(flat, axis=2)
        image = tf.reshape(whole, [batch, down * high, across * wide, channels])
        if (down * high, across * wide) == self.image:
            return image
        return image[:, above : above + self.image[0], before : before + self.image[1], :]

    def _phases(self, padded: Any) -> list[list[Any]]:
        """The pixels at each offset (down, across) within a stride, as images of their own.

        They are made by slices of channels, because strided slices have no fast kernel.
        """
        high, wide = self.strides
        if (high, wide) == (1, 1):
            return [[padded]]
        batch, height, width, channels = (int(n) for n in padded.shape)
        down, across = height // high, width // wide
        beside = tf.reshape(padded, [batch * down, high, across, wide * channels])
        starts = [j * channels for j in range(wide)]
        pixels = [[beside[:, i : i + 1, :, start : start + channels] for start in starts] for i in range(high)]
        return [[tf.reshape(each, [batch, down, across, channels]) for each in row] for row in pixels]

    def _tap(self, phases: list[list[Any]], i: int, j: int) -> Any:
        (down, top), (across, left) = self._offset(0, i), self._offset(1, j)
        phase = phases[top][left]
        if tuple(phase.shape[1:3]) == self.count:
            return phase
        return phase[:, down : down + self.count[0], across : across + self.count[1], :]

    def _phase(self, pieces: list[list[Any]], a: int, b: int, down: int, across: int) -> Any:
        found = []
        for i, row in enumerate(pieces):
            for j, piece in enumerate(row):
                (y, top), (x, left) = self._offset(0, i), self._offset(1, j)
                if (top, left) == (a, b):
                    margins = [[0, 0], [y, down - y - self.count[0]], [x, across - x - self.count[1]], [0, 0]]
                    found.append(tf.pad(piece, margins) if any(map(any, margins)) else piece)
        if not found:
            batch, channels = int(pieces[0][0].shape[0]), int(pieces[0][0].shape[3])
            return tf.zeros([batch, down, across, channels], pieces[0][0].dtype)
        return reduce(lambda total, piece: total + piece, found)

    def _offset(self, axis: int, tap: int) -> tuple[int, int]:
        """The offset of a tap along an axis: whole strides, and the remaining pixels."""
        return divmod(tap * self.dilations[axis], self.strides[axis])


def same_or_valid(op: Any) -> str:
    """The op's padding as "SAME" or "VALID"."""
    padding = op.get_attr("padding")
    return padding.decode() if isinstance(padding, bytes) else str(padding)


def _pair(value: Any) -> tuple[int, int]:
    return value(0), value(1)
