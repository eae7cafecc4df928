"""Metrics as sums: what devices send, averaged by examples, gives the metric of all examples together."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.metrics import MetricSpec, add, per_example, results, sum_shapes

SPECS = (
    MetricSpec("accuracy", "mean", {"total": ()}),
    MetricSpec("steps", "ratio", {"total": (), "count": ()}),
    MetricSpec("rmse", "root_mean", {"total": (), "count": ()}),
    MetricSpec("precision", "precision", {"true_positives": (1,), "false_positives": (1,)}),
    MetricSpec("recall", "recall", {"true_positives": (1,), "false_negatives": (1,)}),
    MetricSpec(
        "auc",
        "auc_roc",
        {"true_positives": (5,), "true_negatives": (5,), "false_positives": (5,), "false_negatives": (5,)},
    ),
)
THRESHOLDS = np.linspace(-0.01, 1.01, 5)
EXAMPLES = st.lists(st.tuples(st.booleans(), st.floats(0, 1, width=32)), min_size=1, max_size=20)


def sums_of(examples: list[tuple[bool, float]]) -> dict[str, Any]:
    truth, score = np.array([y for y, _ in examples]), np.array([p for _, p in examples])
    said = score > 0.5
    above = score[:, None] > THRESHOLDS
    return {
        "weight": float(len(truth)),
        "loss": float(np.sum((truth - score) ** 2)),
        "accuracy": float(np.sum(truth == said)),
        "steps.total": float(np.sum(score)),
        "steps.count": float(np.sum(truth)),
        "rmse.total": float(np.sum((truth - score) ** 2)),
        "rmse.count": float(len(truth)),
        "precision.true_positives": [float(np.sum(truth & said))],
        "precision.false_positives": [float(np.sum(~truth & said))],
        "recall.true_positives": [float(np.sum(truth & said))],
        "recall.false_negatives": [float(np.sum(truth & ~said))],
        "auc.true_positives": np.sum(truth[:, None] & above, axis=0).astype(float).tolist(),
        "auc.true_negatives": np.sum(~truth[:, None] & ~above, axis=0).astype(float).tolist(),
        "auc.false_positives": np.sum(~truth[:, None] & above, axis=0).astype(float).tolist(),
        "auc.false_negatives": np.sum(truth[:, None] & ~above, axis=0).astype(float).tolist(),
    }


@given(st.lists(EXAMPLES, min_size=1, max_size=4))
def test_the_fleets_metric_is_that_of_all_its_examples(devices: list[list[tuple[bool, float]]]) -> None:
    together = results(SPECS, per_example(sums_of([example for device in devices for example in device])))
    total = sum(len(device) for device in devices)
    averaged: dict[str, Any] = {}
    for device in devices:
        for key, value in per_example(sums_of(device)).items():
            averaged[key] = np.asarray(averaged.get(key, 0.0)) + np.asarray(value) * (len(device) / total)
    fleet = results(SPECS, averaged)
    assert fleet == pytest.approx(together, abs=1e-9)


def test_sums_of_batches_add_up() -> None:
    first, second = [(True, 0.9), (False, 0.2)], [(False, 0.8)]
    both = add(sums_of(first), sums_of(second))
    for key, value in sums_of([*first, *second]).items():
        np.testing.assert_allclose(both[key], value)
    assert add({}, both) == both


def test_no_examples_give_zeros_of_the_right_shape() -> None:
    empty = per_example({**sums_of([(True, 1.0)]), "weight": 0.0})
    assert {key: np.shape(value) for key, value in empty.items()} == sum_shapes(SPECS)
    assert set(results(SPECS, empty).values()) == {0.0}
