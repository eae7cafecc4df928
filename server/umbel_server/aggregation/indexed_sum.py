"""Sums of weighted arrays that do not depend on the order of their addends, in memory of one or a few arrays.

Every addend is rounded to a grid that depends on that addend alone, and sums on a grid are sums of integers, which are
exact. It is the indexed summation of Demmel and Nguyen (Parallel Reproducible Summation, IEEE Trans. Computers 2015)
and of Ahrens, Demmel and Nguyen (ACM TOMS 46(3), 2020) for long arrays: one grid for a block of an addend instead of
bins for each number, so that an addend costs one rounding and one integer addition an element.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import TensorError

BLOCK = 1 << 15
"""Elements that share a grid: block, scratch and sums lie in a core's second-level cache."""

STEP = 16
"""Bits between the grids of neighbouring levels."""

KEPT = 4
"""Levels a block keeps, the highest ones. What is dropped is below 2**-48 of the block's largest addend."""

DIGIT = 50
"""Bits of an addend's largest element above its grid; at least DIGIT - STEP of them are used."""

MOST_ROWS = 4
"""Addends that are folded together, so that a block of the sums comes to the cache once for all of them."""

CARRY_AFTER = 1 << 12
"""Addends of DIGIT bits that an int64 surely holds, with room for what is left by the carry before."""

LOW = 32
"""Bits that a carry leaves."""

MASK = (1 << LOW) - 1
LOWEST_LEVEL = -(512 // STEP)
SHIFT = 1.5 * 2.0**52
"""A number that leaves no bits below 1: adding it rounds to integers, halves to even, whatever was added before."""

SHIFT_BITS = int(np.float64(SHIFT).view(np.int64))
WEIGHTS = (2.0**-400, 2.0**400)


@dataclass
class _Level:
    """The addends of one grid: `sums + (carries << LOW)`, less SHIFT_BITS for each of the `pending` addends."""

    sums: NDArray[np.int64]
    carries: NDArray[np.int64] | None = None
    pending: int = 0

    def add(self, rounded: NDArray[np.int64]) -> None:
        """Add rows of SHIFT + digits, as their bits; at most MOST_ROWS of them."""
        # The bits of SHIFT + digit are those of SHIFT plus digit; what wraps around here is taken off again in settle.
        for row in rounded:
            np.add(self.sums, row, out=self.sums)
        self.pending += len(rounded)
        if self.pending > CARRY_AFTER - MOST_ROWS:
            self.settle()

    def settle(self) -> None:
        """Carry what is above LOW bits, so that more addends have room."""
        self.sums[:], self.carries = self.parts()
        self.pending = 0

    def parts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bits below LOW, never negative, and the carries: the only such pair of its sum, whenever it was settled."""
        excess = (self.pending * SHIFT_BITS) & ((1 << 64) - 1)
        low = self.sums - np.int64(excess - (1 << 64) if excess >> 63 else excess)
        carries = low >> LOW
        low &= MASK
        if self.carries is not None:
            carries += self.carries
        return low, carries


class IndexedSum:
    """The sum of weighted arrays of one shape: any order of the same addends gives the same bytes.

    Each element of each addend is rounded once, by at most 2**-35 of the largest element of its block of BLOCK elements
    (in the flattened array); sums are exact for 2**40 addends. Below 2**-512 everything counts as 0.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape, self._size = shape, math.prod(shape)
        self._scratch = np.empty((MOST_ROWS, min(self._size, BLOCK)))
        self._levels: list[dict[int, _Level]] = []
        self._memory: dict[int, NDArray[np.int64]] = {}
        self.clear()

    def clear(self) -> None:
        """Back to zero."""
        self._levels = [{} for _ in range(-(-self._size // BLOCK))]
        self._memory = {}

    def add(self, values: NDArray[Any], weight: float = 1.0) -> None:
        """Add `weight * values`; see `add_all`."""
        self.add_all([values], [weight])

    def add_all(self, addends: Sequence[NDArray[Any]], weights: Sequence[float]) -> None:
        """Add weight * values for each of at most MOST_ROWS addends; values are real, of the sum's shape, weights in
        2**-400..2**400.

        A product is rounded to float64 first. Raises TensorError on another shape or weight, and on values that are
        not finite: then the sum is good for nothing until it is cleared, so look at values before.
        """
        for values, weight in zip(addends, weights, strict=True):
            if values.shape != self._shape:
                raise TensorError(f"an addend of shape {list(self._shape)} was expected, got {list(values.shape)}")
            if not WEIGHTS[0] <= weight <= WEIGHTS[1]:
                raise TensorError(f"the weight of an addend should be in 2**-400..2**400, got {weight}")
        flat = [values.reshape(-1) for values in addends]
        for number in range(len(self._levels)):
            part = slice(number * BLOCK, (number + 1) * BLOCK)
            self._add_blocks(number, [values[part] for values in flat], weights)

    def _add_blocks(self, number: int, blocks: Sequence[NDArray[Any]], weights: Sequence[float]) -> None:
        rows: dict[int, list[tuple[NDArray[Any], float]]] = {}
        for block, weight in zip(blocks, weights, strict=True):
            largest = max(float(block.max()), -float(block.min())) * weight
            if not math.isfinite(largest):
                raise TensorError("an addend holds NaN, infinity, or numbers that overflow with its weight")
            if largest:
                index = max((math.frexp(largest)[1] - 1) // STEP, LOWEST_LEVEL)
                rows.setdefault(index, []).append((block, weight))
        for index, addends in rows.items():
            if (level := self._level(number, index)) is None:
                continue
            digits = self._scratch[: len(addends), : blocks[0].size]
            for row, (block, _) in zip(digits, addends, strict=True):
                np.copyto(row, block, casting="same_kind")
            # A power of two scales exactly: this is the product, rounded once, in units of the grid.
            digits *= [[math.ldexp(weight, -_grid(index))] for _, weight in addends]
            digits += SHIFT
            level.add(digits.view(np.int64))

    def total(self) -> NDArray[np.float64]:
        """The sum as float64 of the shape, within a few roundings of the exact sum of the rounded addends."""
        total = np.zeros(self._size)
        for number, levels in enumerate(self._levels):
            block = total[number * BLOCK : (number + 1) * BLOCK]
            for index in sorted(levels):
                low, carries = levels[index].parts()
                block += low * math.ldexp(1.0, _grid(index))
                block += carries * math.ldexp(1.0, _grid(index) + LOW)
        return total.reshape(self._shape)

    def _level(self, number: int, index: int) -> _Level | None:
        levels = self._levels[number]
        if (found := levels.get(index)) is not None:
            return found
        if levels and index <= max(levels) - KEPT:
            return None
        # One array for all blocks of a level: the system backs a long one with large pages. Unused blocks are not touched.
        if index not in self._memory:
            self._memory[index] = np.zeros(self._size, np.int64)
        levels[index] = _Level(self._memory[index][number * BLOCK : (number + 1) * BLOCK])
        for low in [low for low in levels if low <= index - KEPT]:
            del levels[low]
            if not any(low in others for others in self._levels):
                del self._memory[low]
        return levels[index]


def _grid(level: int) -> int:
    """The exponent of the grid of a level: its addends are below 2**DIGIT of it."""
    return STEP * (level + 1) - DIGIT
