"""Aggregators: they fold each update when it comes and finish the round, for every strategy.

Flower's strategies want all replies at once. Those that only average are given one synthetic reply, the mean, and
their server optimizer and its state are Flower's own. The robust ones want every update, and read them again in tiles.

Weights that no gradient trains, such as batch normalization's moving variance, are statistics: no server optimizer steps
them, they become the mean of the updates, and distances between updates leave them out.
"""

from typing import Protocol

import numpy as np
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg

from umbel.errors import UmbelError
from umbel.metrics import Sums
from umbel.tensors import Tensors
from umbel.updates import Pipeline
from umbel_server.aggregation import passes, robust
from umbel_server.aggregation.fair import FairSum
from umbel_server.aggregation.mean import Mean
from umbel_server.aggregation.metrics import MetricsMean
from umbel_server.aggregation.updates import Pieces, Update
from umbel_server.flower import messages as flower_messages


class TooFewUpdates(UmbelError):
    """A round with fewer updates than its strategy can aggregate."""


class Aggregator(Protocol):
    """The updates of one round on their way to new weights; the order in which they are folded does not show."""

    @property
    def count(self) -> int:
        """How many updates are folded."""

    def clear(self) -> None:
        """Begin a round."""

    def fold(self, id: str, update: Update, weight: float, metrics: Sums) -> None:
        """Take one vetted update; `weight` is its examples, fractional when it is stale, and positive.

        `metrics` are its averages per example; `id` names it among the round's. Raises UmbelError, and takes nothing,
        on an id that was folded before and on metrics unlike those before.
        """

    def finish(self, round: int, base: Tensors) -> tuple[Tensors, Sums]:
        """The new weights, in the order and dtypes of `base`, and the averages of metrics; the updates stay until `clear`.

        `base` is the round's weights, with which the strategy was asked to configure the round. Raises UmbelError when
        the strategy cannot aggregate so few updates, or fails.
        """


def aggregator_of(strategy: FedAvg, pipeline: Pipeline, threads: int = passes.CORES) -> Aggregator:
    """The aggregator of one of `strategies.STRATEGIES`, for updates of `pipeline`; `threads` sum them."""
    match strategy:
        case flower.QFedAvg():
            return _Fair(strategy, pipeline, threads)
        case flower.FedMedian() | flower.FedTrimmedAvg() | flower.MultiKrum() | flower.Bulyan():
            return _Robust(strategy, pipeline)
        case _:
            return _Averaging(strategy, pipeline, threads)


class _Folded:
    """Ids and metrics of the folded updates."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.metrics = MetricsMean()

    def check(self, id: str, metrics: Sums) -> None:
        if id in self.ids:
            raise UmbelError(f"update {id} should be folded once, it came again")
        self.metrics.check(metrics)

    def add(self, id: str, weight: float, metrics: Sums) -> None:
        self.ids.add(id)
        self.metrics.add(metrics, weight)


class _Averaging:
    """FedAvg and those that take its mean as a gradient: FedProx, FedAvgM, FedAdam, FedYogi, FedAdagrad."""

    def __init__(self, strategy: FedAvg, pipeline: Pipeline, threads: int) -> None:
        self._strategy, self._mean, self._folded = strategy, Mean(pipeline, threads), _Folded()
        self._untrained = _untrained(pipeline)

    @property
    def count(self) -> int:
        return self._mean.count

    def clear(self) -> None:
        self._mean.clear()
        self._folded = _Folded()

    def fold(self, id: str, update: Update, weight: float, metrics: Sums) -> None:
        self._folded.check(id, metrics)
        self._mean.add(update, weight)
        self._folded.add(id, weight, metrics)

    def finish(self, round: int, base: Tensors) -> tuple[Tensors, Sums]:
        _require(self.count, 1, self._strategy)
        moved = self._mean.moved(base)
        metrics = {"num-examples": self._mean.total_weight, **self._folded.metrics.mean()}
        try:
            arrays, averages = self._strategy.aggregate_train(round, [flower_messages.own_reply(moved, metrics)])
        except Exception as error:
            raise UmbelError(f"round {round}: {type(self._strategy).__name__} cannot aggregate: {error}") from error
        if arrays is None:
            raise UmbelError(f"round {round}: {type(self._strategy).__name__} made nothing of {self.count} updates")
        averaged = {name: moved[name] for name in self._untrained}
        return _like(base, flower_messages.tensors_of(arrays) | averaged), flower_messages.sums_of(averages)


class _Fair:
    """q-FedAvg, whose weights come from losses."""

    def __init__(self, strategy: flower.QFedAvg, pipeline: Pipeline, threads: int) -> None:
        self._strategy, self._folded = strategy, _Folded()
        self._sum = FairSum(pipeline, threads, strategy.q, strategy.client_learning_rate, _untrained(pipeline))

    @property
    def count(self) -> int:
        return self._sum.count

    def clear(self) -> None:
        self._sum.clear()
        self._folded = _Folded()

    def fold(self, id: str, update: Update, weight: float, metrics: Sums) -> None:
        self._folded.check(id, metrics)
        loss = metrics.get(self._strategy.train_loss_key)
        if not isinstance(loss, int | float):
            raise UmbelError(
                f"q-FedAvg weighs by {self._strategy.train_loss_key!r}: a number was expected, got {loss!r}"
            )
        self._sum.add(update, loss)
        self._folded.add(id, weight, metrics)

    def finish(self, round: int, base: Tensors) -> tuple[Tensors, Sums]:
        _require(self.count, 1, self._strategy)
        return self._sum.moved(base), self._folded.metrics.mean()


class _Robust:
    """Strategies that compare updates with each other. Weights count only where Flower's do: after a selection."""

    def __init__(self, strategy: FedAvg, pipeline: Pipeline) -> None:
        self._strategy, self._untrained = strategy, _untrained(pipeline)
        self._updates: dict[str, tuple[Pieces, float, Sums]] = {}
        self._metrics = MetricsMean()

    @property
    def count(self) -> int:
        return len(self._updates)

    def clear(self) -> None:
        self._updates.clear()
        self._metrics = MetricsMean()

    def fold(self, id: str, update: Update, weight: float, metrics: Sums) -> None:
        if id in self._updates:
            raise UmbelError(f"update {id} should be folded once, it came again")
        self._metrics.check(metrics)
        self._metrics.add(metrics, weight)
        self._updates[id] = (update.pieces, weight, metrics)

    def finish(self, round: int, base: Tensors) -> tuple[Tensors, Sums]:
        # Sorted, so that ties and the last bits of sums are decided by names and not by who was first.
        folded = [self._updates[id] for id in sorted(self._updates)]
        pieces = [update for update, _, _ in folded]
        malicious = getattr(self._strategy, "num_malicious_nodes", 0)
        chosen = list(range(len(folded)))
        compared = {name: weight for name, weight in base.items() if name not in self._untrained}
        match self._strategy:
            case flower.FedMedian():
                _require(self.count, 1, self._strategy)
                tensors = robust.median(pieces, base)
            case flower.FedTrimmedAvg(beta=beta):
                _require(self.count, 1, self._strategy)
                tensors = robust.trimmed_mean(pieces, base, beta)
            case flower.Bulyan():
                _require(self.count, 4 * malicious + 3, self._strategy)
                selected = self.count - 2 * malicious
                chosen = robust.select(pieces, compared, malicious, selected)
                tensors = robust.mean_around_median([pieces[i] for i in chosen], base, selected - 2 * malicious)
            case flower.MultiKrum(num_nodes_to_select=count):
                _require(self.count, 1, self._strategy)
                chosen = robust.select(pieces, compared, malicious, count)
                tensors = robust.weighted_mean([pieces[i] for i in chosen], base, [folded[i][1] for i in chosen])
        metrics = MetricsMean()
        for _, weight, sums in (folded[i] for i in chosen):
            metrics.add(sums, weight)
        return _like(base, tensors), metrics.mean()


def _require(count: int, least: int, strategy: FedAvg) -> None:
    if count < least:
        raise TooFewUpdates(f"{type(strategy).__name__} needs at least {least} updates, {count} were folded")


def _untrained(pipeline: Pipeline) -> frozenset[str]:
    return frozenset(spec.name for spec in pipeline.specs if not spec.trainable)


def _like(base: Tensors, tensors: Tensors) -> Tensors:
    return {name: np.asarray(tensors[name]).astype(weight.dtype, copy=False) for name, weight in base.items()}
