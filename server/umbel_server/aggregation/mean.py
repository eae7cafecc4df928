"""The weighted mean of updates as they come, in memory of one model (FedAvg: McMahan et al., arXiv 1602.05629)."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from umbel.errors import UmbelError
from umbel.tensors import Tensors, WeightSpec
from umbel_server.aggregation.exact_float import ExactFloat
from umbel_server.aggregation.indexed_sum import MOST_ROWS, IndexedSum


class Mean:
    """sum(weight * update) / sum(weight), the same bytes whatever the order of the updates.

    `count` is how many updates it holds.
    """

    def __init__(self, specs: Sequence[WeightSpec]) -> None:
        self._sums = {spec.name: IndexedSum(spec.shape) for spec in specs}
        self._waiting: list[tuple[Mapping[str, NDArray[Any]], float]] = []
        self._weight = ExactFloat()
        self.count = 0

    @property
    def total_weight(self) -> float:
        """The sum of the weights, rounded once."""
        return self._weight.value

    def clear(self) -> None:
        """Forget every update."""
        for total in self._sums.values():
            total.clear()
        self._waiting = []
        self._weight = ExactFloat()
        self.count = 0

    def add(self, update: Mapping[str, NDArray[Any]], weight: float) -> None:
        """Fold one vetted update: weight deltas by name, float32 or float64, of the specs' shapes, all finite.

        `weight` is positive, examples or a fraction of them. The tensors are kept until MOST_ROWS of them are there or the
        sum is read. Raises TensorError, after which only `clear` helps, when they do not fit.
        """
        self._waiting.append((update, weight))
        if len(self._waiting) == MOST_ROWS:
            self._fold()
        self._weight.add(weight)
        self.count += 1

    def _fold(self) -> None:
        updates, weights = [update for update, _ in self._waiting], [weight for _, weight in self._waiting]
        self._waiting = []
        for name, total in self._sums.items():
            total.add_all([update[name] for update in updates], weights)

    def sum(self) -> Tensors:
        """sum(weight * update) as float64 tensors by name, in the order of the specs."""
        self._fold()
        return {name: total.total() for name, total in self._sums.items()}

    def mean(self) -> Tensors:
        """The mean as float64 tensors by name, in the order of the specs; raises UmbelError when there is no update."""
        if not self.count:
            raise UmbelError("a mean of at least one update was expected, none was folded")
        tensors, weight = self.sum(), self.total_weight
        for tensor in tensors.values():
            tensor /= weight
        return tensors
