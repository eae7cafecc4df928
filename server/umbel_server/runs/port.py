"""The port of a run's rounds: their interface to a fleet and to durable memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Message

from umbel.metrics import Sums
from umbel.tensors import Tensors
from umbel_server.aggregation import Update
from umbel_server.rounds.engine import Record
from umbel_server.rounds.events import Abandon, Event, Finish, Offer, Open
from umbel_server.rounds.selection import Candidate
from umbel_server.runs.settings import RunSettings

LOOK_SECONDS = 0.2
"""How often a round that waits for devices looks for them on real time."""


@dataclass(frozen=True)
class Cost:
    """What a run has cost: hours since it was started, bytes of weights and updates that travelled."""

    hours: float
    bytes: int


@dataclass(frozen=True)
class Start:
    """Where a run begins or goes on: the newest checkpoint's weights, strategy state and held-out metrics.

    `untrained` names the weights that no gradient trains.
    """

    record: Record
    weights: Tensors
    strategy: Tensors
    metrics: Mapping[str, float]
    untrained: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Arrival:
    """An update as it came, and what the device says of it.

    `reported` is how many examples the device last said it has; 0 when it has not said.
    """

    device: str
    update: Update
    examples: int
    metrics: Sums
    reported: int = 0


@dataclass(frozen=True)
class NewCheckpoint:
    """A checkpoint to remember. `fleet_sums` are the devices' `per_example` sums, averaged by weight.

    `seconds` is what the server spent on it so far, by what it did: publish, read, vet, fold, aggregate.
    """

    number: int
    attempt: int
    weights: Tensors
    strategy: Tensors
    fleet_sums: Sums
    contributors: Sequence[tuple[str, float]]
    opened: float
    seconds: Mapping[str, float] = field(default_factory=dict)


class Port(Protocol):
    """A fleet's devices and the run's durable memory; every call that changes the memory is one transaction."""

    @property
    def now(self) -> float:
        """The time in Unix seconds, or in a simulation's virtual seconds."""

    @property
    def threads(self) -> int:
        """The number of threads that a pass over an update may use; 1 where the other cores train."""

    @property
    def delta_dtype(self) -> str:
        """The dtype of updates where it is not that of the weights; else empty."""

    def start(self, settings: RunSettings) -> Start:
        """The durable state of the run. A new run commits its first weights as checkpoint 0.

        Raises UmbelError when it is damaged.
        """

    def node(self, device: str) -> int:
        """The Flower node id of a device."""

    def candidates(self) -> tuple[Candidate, ...]:
        """Every device of the population."""

    def offer(self, opened: Open | None, offers: Sequence[tuple[Offer, Message]]) -> None:
        """Note the assignments, and the round that they open if they do; then send them."""

    def arrival(self, id: str) -> Arrival:
        """The update of an assignment; raises UmbelError when it cannot be read."""

    def finish(self, finish: Finish) -> None:
        """Give an assignment its final state unless it has one."""

    def abandon(self, abandon: Abandon) -> None:
        """Note that an attempt was abandoned."""

    def commit(self, checkpoint: NewCheckpoint) -> dict[str, float]:
        """Remember a checkpoint and its contributors; returns the held-out metrics, empty when nothing is held out."""

    def evaluate(self, number: int, messages: Mapping[str, Message]) -> None:
        """Let devices evaluate checkpoint `number`; what they answer is remembered when it comes."""

    def cost(self) -> Cost:
        """The cost of the run so far."""

    def next_look(self, now: float) -> float:
        """The time at which a round that found too few devices at `now` looks again, even without an event."""

    def wait(self, until: float) -> list[Event] | None:
        """Wait for events, at most until `until`. Returns [] when only the fleet changed, None when the rounds must stop."""
