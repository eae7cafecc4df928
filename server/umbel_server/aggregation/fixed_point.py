"""Weighted sums of many updates in fixed point: the same bytes in whatever order the updates come, in O(model) memory.

Every coordinate is rounded to a multiple of its tensor's quantum, a power of two so small that the rounding is far below
that of the float32 weights, and so large that float64 holds every partial sum exactly. An exact sum has no order. (The idea
of binned sums: Demmel and Nguyen, "Parallel Reproducible Summation", IEEE Transactions on Computers 2015.)
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import UmbelError
from umbel.tensors import WeightSpec

Update = Mapping[str, NDArray[Any]]

CHUNK = 16_384
"""Coordinates that are summed at once, so that what is in between stays in the processor's cache."""
BATCH, BATCH_BYTES = 8, 32_000_000
"""Updates that wait to be folded together: at most so many, and so many bytes."""
THREADED = 200_000
"""Coordinates from which on two threads share the work."""

_EXACT_BITS = 53
_WEIGHT_BITS = (22, 29, 36)
_LADDER = 4
_LEAST_EXPONENT = -120
WEIGHT_UNIT = 1 / 16
"""Weights are multiples of this."""


@dataclass(frozen=True)
class _Folded:
    id: str
    weight: float


class FixedPointSum:
    """The sum of weight x update over the updates that were added; `reload(id)` reads an update once more.

    A tensor's quantum 2^e depends only on the set of updates: on the largest magnitude in any of them, in steps of
    2^4, and on how many bits the sum of weights takes. When a new update needs a larger quantum than the ones before, the
    tensor's sum is made again from the updates themselves, so it is as if the larger one had been known at first. A
    coordinate's rounding is at most 2^-28 of the tensor's largest magnitude with up to 4 million examples in a round,
    2^-21 with 536 million; updates may be float32 or float64.
    """

    def __init__(self, specs: Sequence[WeightSpec], reload: Callable[[str], Update]) -> None:
        self._specs, self._reload = tuple(specs), reload
        self._sums = {spec.name: np.zeros(math.prod(spec.shape)) for spec in specs}
        size = sum(sum_.nbytes for sum_ in self._sums.values()) // 2
        self._batch = max(1, min(BATCH, BATCH_BYTES // max(1, size)))
        self.clear()

    def clear(self) -> None:
        """Forget every update."""
        for sum_ in self._sums.values():
            sum_[:] = 0.0
        self._exponents = dict.fromkeys(self._sums, _LEAST_EXPONENT)
        self._peaks = dict.fromkeys(self._sums, 0.0)
        self._folded: list[_Folded] = []
        self._waiting: list[tuple[_Folded, Update]] = []

    def add(self, id: str, update: Update, weight: float, peaks: Mapping[str, float]) -> None:
        """Add weight x update; `peaks` are the largest magnitudes of the update's tensors.

        The weight is a positive multiple of 1/16. Raises UmbelError on another one, or when the weights are too many.
        """
        if not (weight > 0 and (weight / WEIGHT_UNIT).is_integer()):
            raise UmbelError(f"an update's weight should be a positive multiple of {WEIGHT_UNIT}, got {weight}")
        self._waiting.append((_Folded(id, weight), update))
        for name, peak in peaks.items():
            self._peaks[name] = max(self._peaks[name], peak)
        if len(self._waiting) >= self._batch:
            self._fold()

    @property
    def weights(self) -> list[float]:
        """The weights of the updates added."""
        return [it.weight for it in self._folded] + [it.weight for it, _ in self._waiting]

    def sums(self) -> dict[str, NDArray[np.float64]]:
        """The sums by tensor name, float64 and flat; they share memory with this object until `clear`."""
        self._fold()
        return {name: sum_ * 2.0 ** self._exponents[name] for name, sum_ in self._sums.items()}

    def _fold(self) -> None:
        if not self._waiting:
            return
        bits = self._bits_of_a_coordinate()
        coarser = []
        for name, peak in self._peaks.items():
            needed = _exponent(peak, bits)
            if needed > self._exponents[name]:
                self._exponents[name] = needed
                if self._folded:
                    coarser.append(name)
        if coarser:
            self._again(coarser)
        self._accumulate(list(self._sums), [(it.weight, update) for it, update in self._waiting])
        self._folded += [it for it, _ in self._waiting]
        self._waiting = []

    def _again(self, names: Sequence[str]) -> None:
        for name in names:
            self._sums[name][:] = 0.0
        for first in range(0, len(self._folded), self._batch):
            batch = self._folded[first : first + self._batch]
            self._accumulate(names, [(it.weight, self._reload(it.id)) for it in batch])

    def _bits_of_a_coordinate(self) -> int:
        weights = self.weights
        unit = 1.0 if all(weight.is_integer() for weight in weights) else WEIGHT_UNIT
        total = math.fsum(weights) / unit
        for bits in _WEIGHT_BITS:
            if total <= 2.0**bits:
                return _EXACT_BITS - bits
        raise UmbelError(
            f"the examples of a checkpoint's updates may be {2.0 ** _WEIGHT_BITS[-1] * unit:.3g} in all, got {total * unit:.3g}"
        )

    def _accumulate(self, names: Sequence[str], batch: Sequence[tuple[float, Update]]) -> None:
        weights = np.array([weight for weight, _ in batch])
        jobs = []
        for name in names:
            rows = [np.ravel(update[name]) for _, update in batch]
            size = len(self._sums[name])
            parts = 2 if size >= THREADED else 1
            edge = -(-size // parts // CHUNK) * CHUNK
            for start in range(0, size, max(edge, 1)):
                jobs.append((self._sums[name], rows, weights, self._exponents[name], start, min(size, start + edge)))
        if len(jobs) > 1 and sum(job[5] - job[4] for job in jobs) >= THREADED:
            list(_pool().map(lambda job: _accumulate(*job), jobs))
        else:
            for job in jobs:
                _accumulate(*job)


def _accumulate(
    total: NDArray[np.float64],
    rows: Sequence[NDArray[Any]],
    weights: NDArray[np.float64],
    exponent: int,
    start: int,
    stop: int,
) -> None:
    """Add weight x row, in quanta of 2^exponent, to total[start:stop]."""
    scale = 2.0**-exponent
    size = min(CHUNK, stop - start)
    whole = np.empty((len(rows), size))
    scaled = {dtype: np.empty(size, dtype) for dtype in {row.dtype for row in rows}}
    for first in range(start, stop, size):
        last = min(first + size, stop)
        for quanta, row in zip(whole, rows, strict=True):
            # Scaling by a power of two is exact; rounding in the row's own precision is, too, and the fastest there.
            piece = scaled[row.dtype][: last - first]
            np.multiply(row[first:last], row.dtype.type(scale), out=piece)
            np.rint(piece, out=piece)
            quanta[: last - first] = piece
        total[first:last] += weights @ whole[:, : last - first]


def _exponent(peak: float, bits: int) -> int:
    """The least exponent on the ladder with which `peak` is at most 2^bits quanta."""
    if peak == 0.0:
        return _LEAST_EXPONENT
    needed = math.frexp(peak)[1] - bits
    return max(_LEAST_EXPONENT, -(-needed // _LADDER) * _LADDER)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="fold")
