"""Metrics of devices, averaged by weight. Sums are rounded once, so the result does not depend on the order of devices.

A metric that is not finite on one device would hide those of all others, so it is left out of the mean.
"""

import math
from collections.abc import Mapping

from umbel.errors import UmbelError
from umbel.metrics import Sums, name_of, not_finite
from umbel_server.aggregation.exact_float import ExactFloat


class MetricsMean:
    """sum(weight * metric) / sum(weight) by key, over the devices on which the metric is finite; a list is a vector."""

    def __init__(self) -> None:
        self._weight = ExactFloat()
        self._sums: dict[str, list[ExactFloat]] = {}
        self._vectors: set[str] = set()
        self._weights: dict[str, ExactFloat] = {}

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
        """Add metrics that `check` passes, of a positive weight."""
        self._weight.add(weight)
        left_out = not_finite(metrics)
        for key, value in metrics.items():
            if isinstance(value, list):
                self._vectors.add(key)
            values = value if isinstance(value, list) else [value]
            totals = self._sums.setdefault(key, [ExactFloat() for _ in values])
            own_weight = self._weights.setdefault(key, ExactFloat())
            if name_of(key) in left_out:
                continue
            own_weight.add(weight)
            for total, each in zip(totals, values, strict=True):
                total.add(weight * each)

    def mean(self) -> Sums:
        """The averages; NaN where no device has a finite metric, nothing before the first metrics."""
        weights = {key: weight.value or math.nan for key, weight in self._weights.items()}
        averages = {key: [total.value / weights[key] for total in totals] for key, totals in self._sums.items()}
        return {key: values if key in self._vectors else values[0] for key, values in averages.items()}


def _names(lengths: Mapping[str, int | None]) -> str:
    return ", ".join(key if length is None else f"{key}[{length}]" for key, length in sorted(lengths.items()))
