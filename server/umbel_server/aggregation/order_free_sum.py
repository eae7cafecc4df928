"""Weighted sums of updates whose rounded results do not depend on the order in which the updates came.

Weights have few digits, so weight deltas are multiples of some power of two, and float64 often sums them without any
rounding. Such sums are recognised, and their order cannot matter. Elsewhere float64 sums depend on their order in their last bits only,
and weights are float32: almost always every order rounds to the same one. How far a sum can be from the exact one is
known (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed. 2002, sections 3.1 and 4.2); where that leaves two
results possible - a few elements in a million, more where weights are near 0 - the sum is made again from the updates: in
twice the precision (Ogita, Rump and Oishi, Accurate Sum and Dot Product, SIAM J. Sci. Comput. 26(6), 2005), and where even
that leaves two, exactly.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import TensorError
from umbel_server.aggregation import passes
from umbel_server.aggregation.passes import BLOCK
from umbel_server.aggregation.updates import Pieces

MOST_ROWS = passes.ROWS
"""Updates that are folded together."""

CARRY_AFTER = 16
"""Groups of updates that have sums of their own before they join the others, where sums are rounded: short ones have small errors."""

UNIT = 2.0**-53
"""The unit roundoff of float64."""

CAUTION = 1.0 + 2.0**-10
"""The bound is taken this many times, which covers the roundings of the bound itself and second-order terms."""

TERMS = 1 << 18
"""Elements, or products of them, that are held at once when elements are made again; a handful of arrays of them are."""

WEIGHTS = (2.0**-400, 2.0**400)
"""Weights whose products with float32 and with float64 that can be squared neither overflow nor lose more than LOST."""

WHOLE = 2.0**29
"""Whole weights below this times any float32 have no more digits than float64."""

LOST = 2.0**-1070
"""What underflow can take from one product and its parts."""

_SQUARES = {np.dtype(np.float32): (2.0**-90, 2.0**120), np.dtype(np.float64): (2.0**-900, 2.0**1000)}
"""Sums of BLOCK squares between these are right to 2**-9: underflow took nothing that matters, and nothing overflowed."""

_HALF = 134217729.0  # 2^27 + 1


class OrderFreeSum:
    """The sum of weighted vectors of `size` elements, to be scaled and added to weights.

    It holds two float64 vectors of that size: the sum, and what is not yet carried to it. `threads` add to them.
    """

    def __init__(self, size: int, threads: int = passes.CORES) -> None:
        self._size, self._threads = size, threads
        self._sums, self._recent = np.zeros(self._size), np.zeros(self._size)
        blocks = -(-self._size // BLOCK)
        # By block: a bound of the recent sums, and one of all errors in units of UNIT.
        self._reach, self._errors = np.zeros(blocks), np.zeros(blocks)
        self._exact = np.ones(blocks, np.bool_)
        self._groups = self._addends = 0

    def clear(self) -> None:
        """Back to zero."""
        for array in (self._sums, self._recent, self._reach, self._errors):
            array[:] = 0.0
        self._exact[:] = True
        self._groups = self._addends = 0

    def add_all(self, addends: Sequence[NDArray[Any]], weights: Sequence[float]) -> None:
        """Add weight * values for each of at most MOST_ROWS addends of the sum's size, real and finite.

        Raises TensorError on another size, on weights outside WEIGHTS, and on values that are not finite: after that
        last one the sum is good for nothing until it is cleared, so look at values before.
        """
        for values, weight in zip(addends, weights, strict=True):
            if values.shape != (self._size,):
                raise TensorError(f"an addend of {self._size} elements was expected, got {list(values.shape)}")
            if not WEIGHTS[0] <= weight <= WEIGHTS[1]:
                raise TensorError(f"the weight of an addend should be in 2**-400..2**400, got {weight}")
        factors = np.array(weights)
        squares, exact = passes.fold(addends, factors, self._recent, self._threads)
        # A float32 has 24 digits: times a whole number of 29 it has no more than float64.
        self._exact &= exact & bool(((factors == np.rint(factors)) & (factors < WHOLE)).all())
        self._bound(addends, factors, squares)
        self._addends += len(addends)
        self._groups += 1
        self._errors[self._exact] = 0.0
        if self._groups >= CARRY_AFTER and not self._exact.all():
            self._carry()

    def _bound(
        self, addends: Sequence[NDArray[Any]], weights: NDArray[np.float64], squares: NDArray[np.float64]
    ) -> None:
        """Count the errors of a group: of MOST_ROWS products and their sum in any order, and of adding that."""
        # No element is above the root of its block's squares, of which 2**14 float32 additions lose 2**-10 at most.
        peaks = np.sqrt(squares) * (1.0 + 2.0**-9)
        for index, values in enumerate(addends):
            low, high = _SQUARES.get(values.dtype, _SQUARES[np.dtype(np.float64)])
            if low < squares[index].min() and squares[index].max() < high:
                continue
            for number in np.flatnonzero(~((squares[index] > low) & (squares[index] < high))):
                block = values[number * BLOCK : (number + 1) * BLOCK]
                peaks[index, number] = max(float(block.max()), -float(block.min()))
        group = weights @ peaks
        if not np.isfinite(group).all():
            raise TensorError("an addend holds NaN, infinity, or numbers that overflow with its weight")
        self._reach += group
        self._errors += MOST_ROWS * group + self._reach

    def _carry(self) -> None:
        for number, part in self._blocks(0, self._size):
            sums, recent = self._sums[part], self._recent[part]
            total = sums + recent
            self._exact[number] &= not self._exact[number] or not _lost(sums, recent, total).any()
            sums[:] = total
            self._errors[number] += max(float(sums.max()), -float(sums.min()))
            recent[:] = 0.0
        self._reach[:] = 0.0
        self._groups = 0

    def bounded(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The sum, float64[size], and a bound of its error by block, float64[blocks], without what underflow took."""
        self._carry()
        return self._sums.copy(), UNIT * self._errors

    def moved(
        self, start: int, base: NDArray[Any], scale: float, folded: Sequence[tuple[Pieces, float]], name: str
    ) -> NDArray[Any]:
        """base + scale * sum in shape and dtype of `base`, as the exact sum, rounded once to float64, would give it.

        `base` is tensor `name`, whose elements are those of the sum from `start` on. `scale` is positive. `folded` are all
        addends, as pieces to read the tensor again from, with their weights; raises what they raise.
        """
        if self._groups:
            self._carry()
        flat = base.reshape(-1)
        result = np.empty(flat.size, base.dtype)
        unsure = [np.empty(0, np.intp)]
        for number, part in self._blocks(start, start + flat.size):
            own = slice(part.start - start, part.stop - start)
            if self._exact[number]:
                result[own] = _scaled(self._sums[part], scale, flat[own])
                continue
            error = CAUTION * (UNIT * self._errors[number] + LOST * self._addends)
            result[own], sure = _between(self._sums[part], error, scale, flat[own])
            unsure.append(own.start + np.flatnonzero(~sure))
        index = np.concatenate(unsure)
        for first in range(0, index.size, TERMS):
            some = index[first : first + TERMS]
            result[some] = self._again(some, flat[some], scale, folded, name)
        return result.reshape(base.shape)

    def _again(
        self,
        index: NDArray[np.intp],
        base: NDArray[Any],
        scale: float,
        folded: Sequence[tuple[Pieces, float]],
        name: str,
    ) -> NDArray[Any]:
        """`moved` of the elements at `index`, from sums in twice the precision, or exact ones."""
        high, low, sizes = (np.zeros(index.size) for _ in range(3))
        for pieces, weight in folded:
            product, rest = _product(weight, pieces.deltas(name, index).astype(np.float64))
            total = high + product
            low += _lost(high, product, total) + rest
            high, sizes = total, sizes + np.abs(product)
        # Section 5 there: n terms and n rests, rounded as they are added up. Zeros alone have no error at all.
        count = len(folded)
        error = (2.0 * count + 4.0) ** 2 * UNIT**2 * sizes + UNIT * np.abs(low)
        error = CAUTION * 2.0 * (error + np.where(sizes > 0.0, LOST * count, 0.0))
        values, sure = _between(high, error, scale, base, low)
        left, most = np.flatnonzero(~sure), max(1, TERMS // max(1, count))
        for first in range(0, left.size, most):
            some = left[first : first + most]
            values[some] = _scaled(_exact(index[some], folded, name), scale, base[some])
        return values

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """The numbers of the blocks that elements `start` to before `stop` lie in, and which of these."""
        for number in range(start // BLOCK, -(-stop // BLOCK)):
            yield number, slice(max(start, number * BLOCK), min(stop, (number + 1) * BLOCK))


def _between(
    sums: NDArray[np.float64],
    error: float | NDArray[np.float64],
    scale: float,
    base: NDArray[Any],
    rest: float | NDArray[np.float64] = 0.0,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """What the least of sums + rest +- error gives, and where the greatest gives the same."""
    least = _scaled(sums + (rest - error), scale, base)
    return least, least == _scaled(sums + (rest + error), scale, base)


def _scaled(sums: NDArray[np.float64], scale: float, base: NDArray[Any]) -> NDArray[Any]:
    """base + scale * sums; no rounding in it reverses an order, so what two sums agree on, all between them agree on."""
    with np.errstate(over="ignore", invalid="ignore"):
        moved: NDArray[Any] = (sums * scale + base).astype(base.dtype)
        # Equal zeros may differ in sign, which is not between anything: all are positive.
        return moved + np.zeros((), base.dtype) if base.dtype.kind == "f" else moved


def _exact(index: NDArray[np.intp], folded: Sequence[tuple[Pieces, float]], name: str) -> NDArray[np.float64]:
    """The weighted sums of the elements at `index`, rounded once."""
    terms = np.array([pieces.deltas(name, index) for pieces, _ in folded], np.float64)
    parts = _product(np.array([weight for _, weight in folded])[:, np.newaxis], terms)
    return np.array([math.fsum(own) for own in np.concatenate(parts).T.tolist()])


def _lost(a: NDArray[np.float64], b: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    """a + b - total, exactly, where total = a + b as rounded (Knuth, The Art of Computer Programming 2, 4.2.2)."""
    kept = total - a
    rest: NDArray[np.float64] = (a - (total - kept)) + (b - kept)
    return rest


def _product(a: float | NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """a * b as a sum of two floats, exactly but for underflow (Dekker, Numerische Mathematik 18, 1971)."""
    product = a * b
    a_high = _HALF * a - (_HALF * a - a)
    a_low = a - a_high
    b_high = _HALF * b - (_HALF * b - b)
    b_low = b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
