"""The metrics that devices report: checked, and averaged over devices."""

from collections.abc import Mapping, Sequence

import numpy as np

from umbel.errors import UmbelError
from umbel.metrics import JsonSums, MetricSpec, finite, results, sum_shapes, sums_of
from umbel_server.aggregation.metrics import MetricsMean

LARGEST = 1e100
"""The largest number that a device may report: larger ones would overflow when they are weighted and added up."""


def check_metrics(who: str, metrics: Mapping[str, object], specs: Sequence[MetricSpec]) -> None:
    """Raise UmbelError unless `metrics` holds the `per_example` sums of `specs`, each of its shape and at most LARGEST.

    A sum that is not finite passes: the model may well have such a loss, and means leave it out.
    """
    expected = sum_shapes(specs)
    if metrics.keys() != expected.keys():
        raise UmbelError(f"the metrics of {who} should be {sorted(expected)}, got {sorted(metrics)[:9]}")
    for name, value in metrics.items():
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError) as error:
            raise UmbelError(f"metric {name} of {who} should be numbers: {error}") from error
        if array.shape != expected[name]:
            raise UmbelError(
                f"metric {name} of {who} should have shape {list(expected[name])}, got {list(array.shape)}"
            )
        if (np.abs(array[np.isfinite(array)]) > LARGEST).any():
            raise UmbelError(f"metric {name} of {who} should be at most {LARGEST:g}, got {str(value)[:40]}")


def average(
    reports: Sequence[tuple[str, JsonSums, float]], specs: Sequence[MetricSpec]
) -> tuple[dict[str, float], int]:
    """The metrics over all devices' examples and how many devices that are, from (who, sums per example, examples).

    Reports that do not fit are left out; with none the metrics are empty. A metric that is not finite on a device is
    averaged over the others.
    """
    mean, count = MetricsMean(), 0
    for who, sums, examples in reports:
        try:
            check_metrics(who, sums, specs)
        except UmbelError:
            continue
        if examples < 1:
            continue
        mean.add(sums_of(sums), float(examples))
        count += 1
    return (finite(results(specs, mean.mean())) if count else {}), count
