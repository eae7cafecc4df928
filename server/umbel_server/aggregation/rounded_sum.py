"""Weighted sums of updates whose rounded results do not depend on the order in which the updates came.

Float64 sums depend on their order in their last bits only, and weights are float32: almost always every order rounds to the
same float32. How far a sum can be from the exact one is known (Higham, Accuracy and Stability of Numerical Algorithms,
2nd ed. 2002, section 4.2); where that leaves two results possible - a few elements in a hundred million - the sum is
made again, exactly, from the updates themselves.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import TensorError
from umbel_server.aggregation.updates import Pieces

BLOCK = 1 << 14
"""Elements that are summed at once, so that what lies between stays in the processor's cache."""

MOST_ROWS = 4
"""Updates that are folded together, so that a block of the sums comes to the cache once for all of them."""

UNIT = 2.0**-53
"""The unit roundoff of float64."""

CAUTION = 2.0
"""The bound is taken this many times, which covers the roundings of the bound itself."""

_HALF = 134217729.0  # 2^27 + 1


class RoundedSum:
    """The sum of weighted arrays of `shape`, to be scaled and added to weights."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape, self._size = shape, math.prod(shape)
        self._sums = np.zeros(self._size)
        self._rows = np.empty((MOST_ROWS, min(self._size, BLOCK)))
        self._sizes = np.zeros(-(-self._size // BLOCK))
        self._groups = 0

    def clear(self) -> None:
        """Back to zero."""
        self._sums[:] = 0.0
        self._sizes[:] = 0.0
        self._groups = 0

    def add_all(self, addends: Sequence[NDArray[Any]], weights: Sequence[float]) -> None:
        """Add weight * values for each of at most MOST_ROWS addends of the sum's shape, float32 or float64 and finite.

        Raises TensorError on another shape.
        """
        for values in addends:
            if values.shape != self._shape:
                raise TensorError(f"an addend of shape {list(self._shape)} was expected, got {list(values.shape)}")
        flat, factors = [values.reshape(-1) for values in addends], np.array(weights)
        for number, part in self._blocks():
            rows = self._rows[: len(flat), : part.stop - part.start]
            size = 0.0
            for row, values, weight in zip(rows, flat, weights, strict=True):
                block = values[part]
                row[:] = block
                size += weight * max(float(block.max()), -float(block.min()))
            self._sums[part] += factors @ rows
            self._sizes[number] += size
        self._groups += 1

    def moved(
        self, base: NDArray[Any], scale: float, folded: Sequence[tuple[Pieces, float]], name: str
    ) -> NDArray[Any]:
        """base + scale * sum in the dtype of `base`, as the exact sum would give it.

        `folded` are all addends, as pieces to read tensor `name` again from, with their weights.
        """
        flat = base.reshape(-1)
        result = np.empty(self._size, base.dtype)
        unsure = []
        for number, part in self._blocks():
            # Four products and their sum, and one addition a group, each rounded by at most UNIT of what it adds up to.
            error = CAUTION * UNIT * (MOST_ROWS + self._groups + 4) * self._sizes[number]
            low = _scaled(self._sums[part] - error, scale, flat[part])
            high = _scaled(self._sums[part] + error, scale, flat[part])
            result[part] = low
            unsure.append(part.start + np.flatnonzero(low != high))
        if (index := np.concatenate(unsure or [np.empty(0, np.intp)])).size:
            result[index] = _scaled(self._exact(index, flat, folded, name), scale, flat[index])
        return result.reshape(self._shape)

    def _exact(
        self, index: NDArray[np.intp], base: NDArray[Any], folded: Sequence[tuple[Pieces, float]], name: str
    ) -> NDArray[np.float64]:
        """The sums at `index`, each rounded once."""
        terms: list[list[float]] = [[] for _ in index]
        for pieces, weight in folded:
            for own, value in zip(terms, pieces.deltas(name, index, base), strict=True):
                own.extend(_product(weight, float(value)))
        return np.array([math.fsum(own) for own in terms])

    def _blocks(self) -> Iterator[tuple[int, slice]]:
        for number in range(len(self._sizes)):
            yield number, slice(number * BLOCK, min(self._size, (number + 1) * BLOCK))


def _scaled(sums: NDArray[np.float64], scale: float, base: NDArray[Any]) -> NDArray[Any]:
    """Every step of this grows with `sums`, so what two sums agree on, all between them agree on."""
    moved: NDArray[Any] = (sums * scale + base).astype(base.dtype)
    return moved


def _product(a: float, b: float) -> tuple[float, float]:
    """a * b as a sum of two floats, exactly (Dekker, Numerische Mathematik 18, 1971)."""
    product = a * b
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _split(a: float) -> tuple[float, float]:
    high = _HALF * a - (_HALF * a - a)
    return high, a - high
