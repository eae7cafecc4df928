"""The sums of q-FedAvg: devices with a high loss count more (Li et al., Fair Resource Allocation, arXiv 1905.10497)."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import UmbelError
from umbel.tensors import Tensors
from umbel.updates import Pipeline
from umbel_server.aggregation.exact_float import ExactFloat
from umbel_server.aggregation.mean import Mean
from umbel_server.aggregation.updates import Update

_OFFSET = 1e-10
"""Flower adds this to a loss, so that a loss of 0 can be raised to a negative power."""

_LARGEST = 1e100
"""Weights beyond this, or its inverse, are refused: their sums would overflow, or leave nothing of the others."""

_BLOCK = 1 << 16


class FairSum:
    """sum(L F^q x) / sum(h) over updates x with losses F; h = q F^(q-1) |L x|^2 + L F^q and L = 1 / `learning_rate`.

    Weights in `untrained` are no part of |x|, and move by sum(F^q x) / sum(F^q).
    `count` is how many updates it holds. The result does not depend on the order of updates.
    """

    def __init__(
        self, pipeline: Pipeline, threads: int, q: float, learning_rate: float, untrained: frozenset[str] = frozenset()
    ) -> None:
        self._mean, self._h = Mean(pipeline, threads), ExactFloat()
        self._q, self._lipschitz, self._untrained = q, 1.0 / learning_rate, untrained

    @property
    def count(self) -> int:
        """How many updates are folded."""
        return self._mean.count

    def clear(self) -> None:
        """Forget every update."""
        self._mean.clear()
        self._h = ExactFloat()

    def add(self, update: Update, loss: float) -> None:
        """Fold one vetted update; raises UmbelError, and takes nothing, unless `loss` is at least 0
        and not too large to weigh by.
        """
        if not 0.0 <= loss < math.inf:
            raise UmbelError(
                f"q-FedAvg weighs by losses: one that is finite and not negative was expected, got {loss:g}"
            )
        squares = math.fsum(_squares(tensor) for name, tensor in update.delta.items() if name not in self._untrained)
        try:
            powered = (loss + _OFFSET) ** self._q
            slope = self._q * (loss + _OFFSET) ** (self._q - 1)
            h = slope * self._lipschitz**2 * squares + self._lipschitz * powered
        except OverflowError:
            powered = h = math.inf
        # The mean folds several updates at once: one that does not fit must not get there, or it costs the others too.
        if not (1 / _LARGEST <= powered <= _LARGEST and h <= _LARGEST):
            raise UmbelError(f"q-FedAvg weighs by losses to the power of {self._q:g}: {loss:g} is out of its range")
        self._mean.add(update, powered)
        self._h.add(h)

    def moved(self, base: Tensors) -> Tensors:
        """The next weights, in the dtypes of `base`."""
        trained = {name: weight for name, weight in base.items() if name not in self._untrained}
        averaged = {name: weight for name, weight in base.items() if name in self._untrained}
        moved = self._mean.moved(trained, self._lipschitz / self._h.value) | self._mean.moved(averaged)
        return {name: moved[name] for name in base}


def _squares(tensor: NDArray[Any]) -> float:
    # Pairwise sums of blocks and not BLAS, whose order follows its number of threads.
    flat = tensor.reshape(-1)
    return math.fsum(
        float(np.sum(np.square(flat[start : start + _BLOCK], dtype=np.float64)))
        for start in range(0, flat.size, _BLOCK)
    )
