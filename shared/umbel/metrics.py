"""Metrics as sums. Adding the sums of batches or devices gives exactly the metric over all their examples."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Sums = dict[str, float | list[float]]
"""`loss`, `weight` and the sums of the metrics, by key; a list is a vector."""

JsonSums = Mapping[str, float | None | Sequence[float | None]]
"""Sums as JSON carries them. None stands for a number that is not finite: JSON has no NaN and no infinity."""

Kind = Literal["mean", "ratio", "root_mean", "precision", "recall", "auc_roc", "auc_pr"]


class MetricSpec(Struct, frozen=True):
    """One metric; `states` are the shapes of the sums from which it is computed, by Keras's names.

    A metric of kind `mean` is one sum divided by the sum of weights. Every other kind depends only on ratios of its own
    sums.
    """

    name: str
    kind: Kind
    states: dict[str, tuple[int, ...]]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the sums, in the order of `states`."""
        return (self.name,) if self.kind == "mean" else tuple(f"{self.name}.{state}" for state in self.states)


def sum_shapes(specs: Sequence[MetricSpec]) -> dict[str, tuple[int, ...]]:
    """The shape of every sum of `specs` by key, `loss` included."""
    shapes: dict[str, tuple[int, ...]] = {"loss": ()}
    for spec in specs:
        shapes |= dict(zip(spec.keys, spec.states.values(), strict=True))
    return shapes


def add(total: Mapping[str, float | list[float]], sums: Mapping[str, float | list[float]]) -> Sums:
    """`total` plus `sums`; a key that `total` lacks counts as 0."""
    return {**total, **{key: _plain(_array(total.get(key, 0.0)) + _array(value)) for key, value in sums.items()}}


def per_example(sums: Mapping[str, float | list[float]]) -> Sums:
    """Every sum but `weight`, divided by `weight`; all are 0 when `weight` is 0."""
    weight = float(_array(sums.get("weight", 0.0)))
    return {
        key: _plain(_array(value) / weight if weight else _array(value) * 0.0)
        for key, value in sums.items()
        if key != "weight"
    }


def results(specs: Sequence[MetricSpec], averages: Mapping[str, Any]) -> dict[str, float]:
    """The loss and every metric, by name.

    `averages` are sums per example (`per_example`), averaged over devices with the number of examples as weight.
    """
    found = {"loss": float(averages["loss"])}
    for spec in specs:
        states = {state: _array(averages[key]) for state, key in zip(spec.states, spec.keys, strict=True)}
        found[spec.name] = float(_result(spec.kind, states))
    return found


def sums_of(reported: JsonSums) -> Sums:
    """The sums that came as JSON, with NaN for every number that is not finite."""
    return {key: _plain(_array(value)) for key, value in reported.items()}


def not_finite(sums: Mapping[str, float | list[float]]) -> set[str]:
    """The names of the metrics (`loss` among them) that have a sum which is NaN or infinite."""
    return {name_of(key) for key, value in sums.items() if not np.isfinite(_array(value)).all()}


def name_of(key: str) -> str:
    """The name of the metric to which a sum belongs, by the sum's key."""
    return key.rpartition(".")[0] or key


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without those that are NaN or infinite, which JSON and some databases cannot hold."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _result(kind: Kind, states: Mapping[str, NDArray[np.float64]]) -> Any:
    match kind:
        case "mean":
            return states["total"]
        case "ratio":
            return _divide(states["total"], states["count"])
        case "root_mean":
            return np.sqrt(_divide(states["total"], states["count"]))
        case "precision":
            return _divide(states["true_positives"], states["true_positives"] + states["false_positives"]).mean()
        case "recall":
            return _divide(states["true_positives"], states["true_positives"] + states["false_negatives"]).mean()
        case "auc_roc":
            recall = _divide(states["true_positives"], states["true_positives"] + states["false_negatives"])
            alarms = _divide(states["false_positives"], states["false_positives"] + states["true_negatives"])
            return np.sum((alarms[:-1] - alarms[1:]) * (recall[:-1] + recall[1:]) / 2)
        case "auc_pr":
            return _area_under_precision_recall(**states)


def _area_under_precision_recall(
    true_positives: NDArray[np.float64], false_positives: NDArray[np.float64], false_negatives: Any, true_negatives: Any
) -> Any:
    """The area under the precision-recall curve, interpolated in true and false positives (Davis and Goadrich, ICML 2006)."""
    predicted = true_positives + false_positives
    gained, steps = true_positives[:-1] - true_positives[1:], np.maximum(predicted[:-1] - predicted[1:], 0)
    slope = _divide(gained, steps)
    intercept = true_positives[1:] - slope * predicted[1:]
    both = (predicted[:-1] > 0) & (predicted[1:] > 0)
    ratio = np.where(both, _divide(predicted[:-1], predicted[1:]), 1.0)
    positives = np.maximum(true_positives[1:] + false_negatives[1:], 0)
    return np.sum(_divide(slope * (gained + intercept * np.log(ratio)), positives))


def _divide(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=b != 0)


def _array(value: Any) -> NDArray[np.float64]:
    return np.asarray(value, np.float64)


def _plain(value: NDArray[np.float64]) -> float | list[float]:
    plain: float | list[float] = value.tolist()
    return plain
