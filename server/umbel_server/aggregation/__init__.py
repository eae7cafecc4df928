"""How updates become the next weights: folded as they arrive where the strategy averages, in tiles where it is robust."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from umbel.metrics import Sums
from umbel.tensors import Tensors, WeightSpec
from umbel_server.aggregation.collected import Collected
from umbel_server.aggregation.streaming import Streaming

Update = Mapping[str, NDArray[Any]]

_STREAMING = (
    flower.FedAvg,
    flower.FedProx,
    flower.FedAvgM,
    flower.FedAdam,
    flower.FedYogi,
    flower.FedAdagrad,
)


class Aggregator(Protocol):
    """Makes the next weights from updates, in whatever order they come."""

    def fold(self, id: str, update: Update, weight: float, metrics: Sums, peaks: Mapping[str, float]) -> None:
        """Take in a vetted update: weights after minus weights before, by name."""

    def clear(self) -> None:
        """Forget what was folded."""

    def finish(self, round: int, base: Tensors) -> tuple[Tensors, Sums]:
        """The next weights, and the devices' metrics averaged by weight; raises UmbelError when they cannot be made."""


def aggregator_of(strategy: FedAvg, specs: Sequence[WeightSpec], reload: Callable[[str], Update]) -> Aggregator:
    """The aggregator for one of Flower's strategies; `reload(id)` reads an update once more."""
    if type(strategy) in _STREAMING:
        return Streaming(strategy, specs, reload)
    return Collected(strategy, reload)
