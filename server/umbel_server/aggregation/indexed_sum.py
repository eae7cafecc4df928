"""Sums of weighted arrays that do not depend on the order of their addends, in memory of one or a few arrays.

Every addend is rounded to a grid that depends on that addend alone, and sums on a grid are sums of integers, which are
exact. It is the indexed summation of Demmel and Nguyen (Parallel Reproducible Summation, IEEE Trans. Computers 2015)
and of Ahrens, Demmel and Nguyen (ACM TOMS 46(3), 2020) for long arrays: one grid for a block of an addend instead of
bins for each number, so that an addend costs one rounding and one integer addition an element.
"""

import math
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
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

CARRY_AFTER = 1 << 12
"""Addends of DIGIT bits that an int64 surely holds, with room for what is left by the carry before."""

LOW = 32
MASK = (1 << LOW) - 1
LOWEST_LEVEL = -(512 // STEP)
SHIFT = 1.5 * 2.0**52
"""A number that leaves no bits below 1: adding it rounds to integers, halves to even, whatever was added before."""

SHIFT_BITS = int(np.float64(SHIFT).view(np.int64))
WEIGHTS = (2.0**-400, 2.0**400)
PARALLEL_BLOCKS = 8
_scratch = threading.local()


@dataclass
class _Level:
    """The addends of one grid: `sums + (carries << LOW)`, less SHIFT_BITS for each of the `pending` addends."""

    sums: NDArray[np.int64]
    carries: NDArray[np.int64] | None = None
    pending: int = 0

    def add(self, rounded: NDArray[np.int64]) -> None:
        # The bits of SHIFT + digit are those of SHIFT plus digit; what wraps around here is taken off again in settle.
        np.add(self.sums, rounded, out=self.sums)
        self.pending += 1
        if self.pending == CARRY_AFTER:
            self.settle()

    def settle(self) -> NDArray[np.int64]:
        """Carry, so that `sums` is in 0..MASK and the pair is the only one of its value; returns the carries."""
        excess = (self.pending * SHIFT_BITS) & ((1 << 64) - 1)
        self.sums -= np.int64(excess - (1 << 64) if excess >> 63 else excess)
        self.pending = 0
        carry = self.sums >> LOW
        self.sums &= MASK
        self.carries = carry if self.carries is None else self.carries + carry
        return self.carries


class IndexedSum:
    """The sum of weighted arrays of one shape: any order of the same addends gives the same bytes.

    Each element of each addend is rounded once, by at most 2**-35 of the largest element of its block of BLOCK elements
    (in the flattened array); sums are exact for 2**40 addends. Below 2**-512 everything counts as 0.
    """

    def __init__(self, shape: tuple[int, ...], pool: ThreadPoolExecutor | None = None) -> None:
        self._shape, self._size, self._pool = shape, math.prod(shape), pool
        self._levels: list[dict[int, _Level]] = []
        self.clear()

    def clear(self) -> None:
        """Back to zero."""
        self._levels = [{} for _ in range(-(-self._size // BLOCK))]

    def add(self, values: NDArray[Any], weight: float = 1.0) -> None:
        """Add `weight * values`; `values` is real, of the sum's shape, `weight` in 2**-400..2**400.

        The product is rounded to float64 first. Raises TensorError on another shape or weight, and on values that are
        not finite: then the sum is good for nothing until it is cleared, so look at values before.
        """
        if values.shape != self._shape:
            raise TensorError(f"an addend of shape {list(self._shape)} was expected, got {list(values.shape)}")
        if not WEIGHTS[0] <= weight <= WEIGHTS[1]:
            raise TensorError(f"the weight of an addend should be in 2**-400..2**400, got {weight}")
        flat, blocks = values.reshape(-1), len(self._levels)
        if self._pool is None or blocks < PARALLEL_BLOCKS:
            self._add_blocks(flat, weight, range(blocks))
            return
        half = blocks // 2
        rest = self._pool.submit(self._add_blocks, flat, weight, range(half, blocks))
        try:
            self._add_blocks(flat, weight, range(half))
        finally:
            rest.result()

    def total(self) -> NDArray[np.float64]:
        """The sum as float64 of the shape, within a few roundings of the exact sum of the rounded addends."""
        total = np.zeros(self._size)
        for number, levels in enumerate(self._levels):
            block = total[number * BLOCK : (number + 1) * BLOCK]
            for index in sorted(levels):
                grid = _grid(index)
                carries = levels[index].settle()
                block += levels[index].sums * math.ldexp(1.0, grid)
                block += carries * math.ldexp(1.0, grid + LOW)
        return total.reshape(self._shape)

    def _add_blocks(self, flat: NDArray[Any], weight: float, blocks: Iterable[int]) -> None:
        scratch = _thread_scratch()
        for number in blocks:
            values = flat[number * BLOCK : (number + 1) * BLOCK]
            largest = max(float(values.max()), -float(values.min())) * weight
            if largest == 0.0:
                continue
            if not math.isfinite(largest):
                raise TensorError("an addend holds NaN, infinity, or numbers that overflow with its weight")
            index = max((math.frexp(largest)[1] - 1) // STEP, LOWEST_LEVEL)
            level = self._level(number, index, values.size)
            if level is None:
                continue
            digits = scratch[: values.size]
            np.copyto(digits, values, casting="same_kind")
            # A power of two scales exactly: this is the product, rounded once, in units of the grid.
            digits *= math.ldexp(weight, -_grid(index))
            digits += SHIFT
            level.add(digits.view(np.int64))

    def _level(self, number: int, index: int, size: int) -> _Level | None:
        levels = self._levels[number]
        if (found := levels.get(index)) is not None:
            return found
        if levels and index <= max(levels) - KEPT:
            return None
        levels[index] = _Level(np.zeros(size, np.int64))
        for low in [low for low in levels if low <= index - KEPT]:
            del levels[low]
        return levels[index]


def _grid(level: int) -> int:
    """The exponent of the grid of a level: its addends are below 2**DIGIT of it."""
    return STEP * (level + 1) - DIGIT


def _thread_scratch() -> NDArray[np.float64]:
    if not hasattr(_scratch, "block"):
        _scratch.block = np.empty(BLOCK)
    block: NDArray[np.float64] = _scratch.block
    return block


def thread_pool() -> ThreadPoolExecutor | None:
    """One more thread for long arrays, where there is more than one core: NumPy works outside the interpreter's lock."""
    return ThreadPoolExecutor(1, "indexed-sum") if (os.cpu_count() or 1) > 1 else None
