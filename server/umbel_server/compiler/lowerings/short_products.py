"""The correlation of a column of pixels with a column of taps, by fewer products than rows times taps.

A correlation is bilinear, so y = A ((G w) * (B x)) with constant matrices A, G and B and the elementwise product *
(Winograd, Arithmetic Complexity of Computations, SIAM 1980). The matrices here are those of the discrete Fourier
transform, with a complex product as three real ones (Gauss). They need about 1.5 products for each row, however many taps
there are, and are as accurate in float32 as the definition. Interpolation in small tiles (Lavin and Gray, arXiv
1509.09308) needs as few products, but its rounding error is three times as large.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class ShortProducts:
    """The three matrices: `inner` float32[products, image] is B, `taps_to` float32[products, taps] is G, and `outer`
    float32[rows, products] is A."""

    inner: Matrix
    taps_to: Matrix
    outer: Matrix


def count_of(rows: int, taps: int) -> int:
    """The number of products that `short_products` needs."""
    return (3 * (rows + taps - 1) - 1) // 2


@cache
def short_products(image: int, above: int, rows: int, taps: int) -> ShortProducts:
    """The matrices for `rows` outputs with `taps` taps each, from `image` pixels that have `above` zeros before them."""
    length = rows + taps - 1  # long enough for a cyclic correlation not to wrap around
    inner: list[NDArray[np.float64]] = []
    taps_to: list[NDArray[np.float64]] = []
    outer: list[NDArray[np.float64]] = []
    time, tap, row = np.arange(length), np.arange(taps), np.arange(rows)
    for k in range(length // 2 + 1):
        turn = 2 * np.pi * k / length
        (a, b), (c, d) = (np.cos(turn * time), -np.sin(turn * time)), (np.cos(turn * tap), np.sin(turn * tap))
        share = (1 if 2 * k in (0, length) else 2) / length
        real, imaginary = share * np.cos(turn * row), share * -np.sin(turn * row)
        if 2 * k in (0, length):
            inner, taps_to, outer = [*inner, a], [*taps_to, c], [*outer, real]
        else:
            # (a + bi)(c + di): c (a + b) - b (c + d) is real, c (a + b) + a (d - c) imaginary.
            inner, taps_to = [*inner, a + b, a, b], [*taps_to, c, d - c, c + d]
            outer += [real + imaginary, imaginary, -real]
    made = np.array(inner)[:, above : above + image], np.array(taps_to), np.array(outer).T
    return ShortProducts(*(np.ascontiguousarray(matrix, np.float32) for matrix in made))
