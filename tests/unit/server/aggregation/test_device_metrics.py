"""Metrics that devices report: what is checked of them, and what their averages are."""

import math

import pytest

from umbel import UmbelError
from umbel.metrics import MetricSpec
from umbel_server.aggregation.device_metrics import average, check_metrics
from umbel_server.aggregation.metrics import MetricsMean

SPECS = (
    MetricSpec("mse", "mean", {"total": ()}),
    MetricSpec("ratio", "ratio", {"total": (), "count": ()}),
)


def test_a_metric_that_is_not_finite_passes_and_one_too_large_does_not() -> None:
    check_metrics("phone", {"loss": 1.0, "mse": None, "ratio.total": 1.0, "ratio.count": 2.0}, SPECS)
    check_metrics("phone", {"loss": math.inf, "mse": math.nan, "ratio.total": 1.0, "ratio.count": 2.0}, SPECS)
    with pytest.raises(UmbelError, match="metric mse of phone should be at most 1e\\+100"):
        check_metrics("phone", {"loss": 1.0, "mse": 1e200, "ratio.total": 1.0, "ratio.count": 2.0}, SPECS)


def test_an_average_leaves_out_the_metrics_that_are_not_finite_and_keeps_the_devices_others() -> None:
    reports = [
        ("a", {"loss": 1.0, "mse": 2.0, "ratio.total": 1.0, "ratio.count": 4.0}, 10.0),
        ("b", {"loss": 3.0, "mse": None, "ratio.total": None, "ratio.count": 4.0}, 10.0),
    ]
    assert average(reports, SPECS) == ({"loss": 2.0, "mse": 2.0, "ratio": 0.25}, 2)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_mean_does_not_depend_on_when_a_broken_metric_came(broken: float) -> None:
    reports = [({"loss": 1.0, "auc": [1.0, 2.0]}, 1.0), ({"loss": 5.0, "auc": [3.0, broken]}, 3.0)]
    for order in (reports, reports[::-1]):
        mean = MetricsMean()
        for metrics, weight in order:
            mean.check(metrics)
            mean.add(metrics, weight)
        assert mean.mean() == {"loss": 4.0, "auc": [1.0, 2.0]}
        assert mean.total_weight == 4.0


def test_a_metric_that_no_device_has_is_not_a_number() -> None:
    mean = MetricsMean()
    mean.add({"loss": 1.0, "mse": math.inf}, 2.0)
    assert mean.mean()["loss"] == 1.0
    found = mean.mean()["mse"]
    assert isinstance(found, float)
    assert math.isnan(found)
