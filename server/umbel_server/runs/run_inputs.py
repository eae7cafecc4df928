"""The inputs of one run: what Umbel's ServerApp trains with, and the grids that carry them to it."""

from abc import abstractmethod
from dataclasses import dataclass

from flwr.serverapp.strategy import FedAvg

from umbel_server.flower.plain_grid import PlainGrid
from umbel_server.flower.strategies import make_strategy
from umbel_server.runs.port import Port
from umbel_server.runs.settings import RunSettings


@dataclass(frozen=True)
class RunInputs:
    """What the ServerApp trains with.

    Attributes:
        settings: how the run trains.
        port: the devices, and the run's durable memory.
        learning_rate: of a device's training step: the settings' one, or the plan's where they have none.
    """

    settings: RunSettings
    port: Port
    learning_rate: float

    def strategy(self) -> FedAvg:
        """A fresh strategy of the settings' name and options; raises UmbelError when there is no such strategy or option."""
        return make_strategy(self.settings.strategy, self.settings.options, self.learning_rate)


class RunGrid(PlainGrid):
    """A grid of ours that carries the inputs of its run to the ServerApp, as objects."""

    @property
    @abstractmethod
    def inputs(self) -> RunInputs:
        """The inputs of the run."""
