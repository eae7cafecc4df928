"""Convolutions with stride 1 along the height by fewer products than taps times rows.

A correlation of a column of h pixels with r taps is bilinear: y = A ((G w) * (B x)) for constant matrices with fewer
products * than the h r of its definition (Winograd, Arithmetic Complexity of Computations, SIAM 1980; Lavin and Gray,
arXiv 1509.09308). Here every product is a matrix product over channels, windows along the width and examples: the taps
of a window's row are its channels. Two families of matrices, both exact to a few roundings of float32:
tiles by interpolation at 0, 1, -1, 2, -2, 1/2, -1/2 and infinity (Toom and Cook), and the whole column by the discrete
Fourier transform, a complex product as three real ones (Gauss).
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
_POINTS = tuple(Fraction(p) for p in ("0", "1", "-1", "2", "-2", "1/2", "-1/2"))
"""More of them and rounding grows: 8 points are off by 3e-7, 11 by 2e-6."""


@dataclass(frozen=True)
class ShortProducts:
    """`rows` outputs of a correlation with `taps` taps, of `image` pixels with `above` zeros before them.

    `inner` float32[points * tiles, image] is B, `taps_to` float32[points, taps] is G, `outer` float32[rows, points * tiles]
    is A; products of the same point share its transformed taps.
    """

    points: int
    tiles: int
    inner: Matrix
    taps_to: Matrix
    outer: Matrix


@cache
def short_products(image: int, above: int, rows: int, taps: int, uses: int, price: int) -> ShortProducts:
    """The matrices that cost least: every product has `uses` rows, every point's taps cost as much as `price` rows."""
    tiles = [_tiled(rows, taps, size) for size in range(2, len(_POINTS) + 3 - taps)]
    made = [*tiles, _fourier(rows, taps)]
    inner, taps_to, outer, points = min(made, key=lambda m: len(m[0]) * uses + m[3] * price)
    b, g, a = (m.astype(np.float32) for m in (inner[:, above : above + image], taps_to, outer))
    return ShortProducts(points, len(b) // points, b, g, a)


_Made = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int]


def _tiled(rows: int, taps: int, size: int) -> _Made:
    """Tiles of `size` rows by interpolation, point by point."""
    points, tiles = size + taps - 1, -(-rows // size)
    finite = _POINTS[: points - 1]
    factors = [_product([p - q for q in finite if q != p]) for p in finite]
    b = np.array(
        [*(_roots([q for q in finite if q != p], points) for p in finite), _roots(list(finite), points)], float
    )
    g = np.array([*([p**k / f for k in range(taps)] for p, f in zip(finite, factors, strict=True)), [0] * taps], float)
    a = np.array([[*(p**i for p in finite), int(i == size - 1)] for i in range(size)], float)
    g[-1, -1] = 1.0
    inner, outer = np.zeros((points, tiles, tiles * size + taps - 1)), np.zeros((tiles * size, points, tiles))
    for tile in range(tiles):
        inner[:, tile, tile * size : tile * size + points] = b
        outer[tile * size : (tile + 1) * size, :, tile] = a
    return inner.reshape(points * tiles, -1), g, outer.reshape(tiles * size, -1)[:rows], points


def _fourier(rows: int, taps: int) -> _Made:
    """A cyclic correlation that is long enough not to wrap around."""
    length = rows + taps - 1
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
    return np.array(inner), np.array(taps_to), np.array(outer).T, len(inner)


def _roots(roots: list[Fraction], size: int) -> list[Fraction]:
    """The coefficients, lowest first, of the monic polynomial with these roots."""
    coefficients = [Fraction(1)]
    for root in roots:
        raised, scaled = [Fraction(0), *coefficients], [*(-root * c for c in coefficients), Fraction(0)]
        coefficients = [x + y for x, y in zip(raised, scaled, strict=True)]
    return coefficients + [Fraction(0)] * (size - len(coefficients))


def _product(factors: list[Fraction]) -> Fraction:
    total = Fraction(1)
    for factor in factors:
        total *= factor
    return total
