"""Strategies that average: each update is folded into one sum, and Flower's own class is given the mean."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from umbel.errors import UmbelError
from umbel.metrics import Sums
from umbel.tensors import Tensors, WeightSpec
from umbel_server import flower_messages
from umbel_server.aggregation.fixed_point import FixedPointSum, Update


class Streaming:
    """FedAvg and what is built on its mean: FedProx, FedAvgM, FedAdam, FedYogi, FedAdagrad.

    The weighted mean of the updates is made in O(model) memory. The strategy's own `aggregate_train` is then given one reply
    whose weights are base + mean: averaging one reply gives it back, and the server's optimizer is Flower's.
    """

    def __init__(self, strategy: FedAvg, specs: Sequence[WeightSpec], reload: Callable[[str], Update]) -> None:
        self._strategy = strategy
        self._sum = FixedPointSum(specs, reload)
        self._metrics: dict[str, tuple[float, Sums]] = {}

    def fold(self, id: str, update: Update, weight: float, metrics: Sums, peaks: Mapping[str, float]) -> None:
        """Take in a vetted update; raises UmbelError when its metrics are not those of the updates before."""
        for _, others in self._metrics.values():
            if others.keys() != metrics.keys():
                raise UmbelError(f"the metrics should be {sorted(others)}, as others sent, got {sorted(metrics)}")
            break
        self._sum.add(id, update, weight, peaks)
        self._metrics[id] = weight, metrics

    def clear(self) -> None:
        """Forget what was folded."""
        self._sum.clear()
        self._metrics = {}

    def finish(self, round: int, base: Tensors) -> tuple[Tensors, Sums]:
        """Base + mean, through the strategy; raises UmbelError when that cannot aggregate."""
        total = math.fsum(weight for weight, _ in self._metrics.values())
        sums = self._sum.sums()
        mean: Tensors = {}
        for name, weight in base.items():
            step = sums.pop(name)
            step /= total
            step += np.ravel(weight)
            mean[name] = step.astype(weight.dtype).reshape(weight.shape)
        return through_flower(self._strategy, round, base, [(mean, {"num-examples": total, **self._averages(total)})])

    def _averages(self, total: float) -> Sums:
        (_, first), *_ = self._metrics.values()
        return {name: self._average(name, total) for name in first}

    def _average(self, name: str, total: float) -> float | list[float]:
        values: list[tuple[float, Any]] = [(weight, metrics[name]) for weight, metrics in self._metrics.values()]
        if isinstance(values[0][1], list):
            columns = zip(*(value for _, value in values), strict=True)
            weights = [weight for weight, _ in values]
            return [math.fsum(w * v for w, v in zip(weights, column, strict=True)) / total for column in columns]
        return math.fsum(weight * value for weight, value in values) / total


def through_flower(
    strategy: FedAvg, round: int, base: Tensors, replies: Sequence[tuple[Tensors, Sums]]
) -> tuple[Tensors, Sums]:
    """What a strategy makes of replies, each weights and metrics with "num-examples"; raises UmbelError when it cannot."""
    name = type(strategy).__name__
    try:
        arrays, metrics = strategy.aggregate_train(round, flower_messages.replies(replies))
    except Exception as error:
        raise UmbelError(f"{name} cannot aggregate: {error}") from error
    if arrays is None:
        raise UmbelError(f"{len(replies)} updates are too few for {name} with its options")
    made = flower_messages.tensors_of(arrays)
    weights: dict[str, NDArray[Any]] = {key: made[key].astype(weight.dtype, copy=False) for key, weight in base.items()}
    sums: Sums = {
        key: [float(v) for v in value] if isinstance(value, list) else float(value)
        for key, value in (metrics or {}).items()
    }
    return weights, sums
