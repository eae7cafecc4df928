"""Metrics of devices, averaged by weight. Sums are rounded once, so the result does not depend on the order of devices."""

from collections.abc import Mapping

from umbel.errors import UmbelError
from umbel.metrics import Sums
from umbel_server.aggregation.exact_float import ExactFloat


class MetricsMean:
    """sum(weight * metric) / sum(weight) by key; a list is a vector."""

    def __init__(self) -> None:
        self._weight = ExactFloat()
        self._sums: dict[str, list[ExactFloat]] = {}
        self._vectors: set[str] = set()

    @property
    def total_weight(self) -> float:
        """The sum of weights, rounded once."""
        return self._weight.value

    def check(self, metrics: Mapping[str, float | list[float]]) -> None:
        """Raise UmbelError unless `metrics` has the keys and the vectors' lengths of those before."""
        expected = {key: len(values) if key in self._vectors else None for key, values in self._sums.items()}
        found = {key: len(value) if isinstance(value, list) else None for key, value in metrics.items()}
        if expected and found != expected:
            raise UmbelError(f"the metrics of an update should be {_names(expected)}, got {_names(found)}")

    def add(self, metrics: Mapping[str, float | list[float]], weight: float) -> None:
        """Add finite metrics that `check` passes, of a positive weight."""
        self._weight.add(weight)
        for key, value in metrics.items():
            if isinstance(value, list):
                self._vectors.add(key)
            values = value if isinstance(value, list) else [value]
            for total, each in zip(self._sums.setdefault(key, [ExactFloat() for _ in values]), values, strict=True):
                total.add(weight * each)

    def mean(self) -> Sums:
        """The averages; nothing before the first metrics."""
        weight = self.total_weight
        averages = {key: [total.value / weight for total in totals] for key, totals in self._sums.items()}
        return {key: values if key in self._vectors else values[0] for key, values in averages.items()}


def _names(lengths: Mapping[str, int | None]) -> str:
    return ", ".join(key if length is None else f"{key}[{length}]" for key, length in sorted(lengths.items()))
