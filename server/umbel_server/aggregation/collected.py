"""Strategies that need every update at once: Flower's own class is given them all, in an order that is not that of arrival."""

from collections.abc import Callable, Mapping

from flwr.serverapp.strategy import FedAvg

from umbel.metrics import Sums
from umbel.tensors import Tensors
from umbel_server.aggregation.fixed_point import Update
from umbel_server.aggregation.streaming import through_flower


class Collected:
    """Remembers which updates there are, and reads them at the end, in the order of their ids."""

    def __init__(self, strategy: FedAvg, reload: Callable[[str], Update]) -> None:
        self._strategy, self._reload = strategy, reload
        self._folded: dict[str, tuple[float, Sums]] = {}

    def fold(self, id: str, update: Update, weight: float, metrics: Sums, peaks: Mapping[str, float]) -> None:
        """Take in a vetted update."""
        self._folded[id] = weight, metrics

    def clear(self) -> None:
        """Forget what was folded."""
        self._folded = {}

    def finish(self, round: int, base: Tensors) -> tuple[Tensors, Sums]:
        """What the strategy makes of all updates; raises UmbelError when it cannot."""
        replies: list[tuple[Tensors, Sums]] = []
        for id, (weight, metrics) in sorted(self._folded.items()):
            update = self._reload(id)
            weights = {name: (value + update[name]).astype(value.dtype) for name, value in base.items()}
            replies.append((weights, {"num-examples": weight, **metrics}))
        return through_flower(self._strategy, round, base, replies)
