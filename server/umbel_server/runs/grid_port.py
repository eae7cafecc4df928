"""A port (umbel_server.runs.port) over any Flower grid: it pushes messages, polls replies, and keeps checkpoints in a journal."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from umbel.errors import UmbelError
from umbel.metrics import Sums
from umbel.tensors import Tensors, WeightSpec, check
from umbel_server.aggregation import from_weights, passes
from umbel_server.flower import messages as flower_messages
from umbel_server.rounds.engine import Record
from umbel_server.rounds.events import Abandon, Ended, Event, Finish, Offer, Open, Uploaded
from umbel_server.rounds.selection import Candidate
from umbel_server.runs.port import LOOK_SECONDS, Arrival, Cost, NewCheckpoint, Start
from umbel_server.runs.settings import RunSettings

log = logging.getLogger("umbel.rounds")

POLL_SECONDS = 0.05


class Journal(Protocol):
    """The durable memory of a run on a Flower grid."""

    def start(self) -> tuple[int, Tensors, Tensors]:
        """The newest checkpoint: its round (0: none yet), weights and strategy state."""

    def abandoned(self, round: int, reason: str) -> None:
        """Note that an attempt at a round ended without a checkpoint."""

    def committed(self, checkpoint: NewCheckpoint) -> dict[str, float]:
        """Remember a checkpoint, durably; returns the held-out metrics, empty when nothing is held out."""

    def evaluated(self, round: int, device: str, metrics: Sums) -> None:
        """Note a device's evaluation of a checkpoint: `per_example` sums and "num-examples"."""


@dataclass(frozen=True)
class _Sent:
    id: str
    node: int
    weights: Tensors
    evaluates: int = 0


class GridPort:
    """A Flower grid that is not ours, and a journal; see umbel_server.runs.port.Port.

    A grid cannot cancel an assignment. A reply that comes after the assignment's final state is dropped.
    """

    def __init__(
        self,
        grid: Grid,
        journal: Journal,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        untrained: frozenset[str] = frozenset(),
    ) -> None:
        """`untrained` names the weights that no gradient trains."""
        self._untrained = untrained
        self._grid, self._journal, self._clock, self._sleep = grid, journal, clock, sleep
        self._sent: dict[str, _Sent] = {}
        self._arrived: dict[str, tuple[_Sent, Message]] = {}
        self._began = clock()
        self._bytes = 0

    @property
    def now(self) -> float:
        """The time in Unix seconds."""
        return self._clock()

    @property
    def threads(self) -> int:
        """As Port."""
        return passes.CORES

    @property
    def delta_dtype(self) -> str:
        """float64: an update is the reply's weights minus the weights that were sent, and float64 keeps that difference exact."""
        return "float64"

    def start(self, settings: RunSettings) -> Start:
        """The newest checkpoint in the journal. Assignments that were open are offered anew."""
        version, weights, strategy = self._journal.start()
        record = Record("grid", settings.seed, settings.policy, settings.rounds, version)
        return Start(record, weights, strategy, {}, self._untrained)

    def node(self, device: str) -> int:
        """A device's name is its node id in digits."""
        return int(device)

    def candidates(self) -> tuple[Candidate, ...]:
        """The nodes that are connected."""
        return tuple(Candidate(f"{node:020}") for node in self._grid.get_node_ids())

    def offer(self, opened: Open | None, offers: Sequence[tuple[Offer, Message]]) -> None:
        """Push the messages, in the order of nodes."""
        ids = self._grid.push_messages([message for _, message in offers])
        for message_id, (offer, message) in zip(ids, offers, strict=True):
            self._sent[message_id] = self._note(offer.id, message)

    def evaluate(self, number: int, messages: Mapping[str, Message]) -> None:
        """Push the messages; answers go to the journal when they come."""
        batch = list(messages.values())
        for message_id, message in zip(self._grid.push_messages(batch), batch, strict=True):
            sent = self._note("", message)
            self._sent[message_id] = _Sent("", sent.node, {}, number)

    def _note(self, id: str, message: Message) -> _Sent:
        (record,) = message.content.array_records.values()
        weights = flower_messages.tensors_of(record)
        self._bytes += sum(weight.nbytes for weight in weights.values())
        return _Sent(id, message.metadata.dst_node_id, weights)

    def next_look(self, now: float) -> float:
        """As Port."""
        return now + LOOK_SECONDS

    def wait(self, until: float) -> list[Event] | None:
        """Poll until a reply comes or `until` is reached."""
        while True:
            events = [event for reply in self._pull() if (event := self._take(reply)) is not None]
            left = until - self._clock()
            if events or left <= 0:
                return events
            self._sleep(min(POLL_SECONDS, left))

    def _pull(self) -> list[Message]:
        return list(self._grid.pull_messages(list(self._sent))) if self._sent else []

    def _take(self, reply: Message) -> Event | None:
        sent = self._sent.pop(reply.metadata.reply_to_message_id, None)
        if sent is None:
            return None
        if sent.evaluates:
            self._evaluated(sent, reply)
            return None
        if reply.has_error():
            why = f"node {sent.node}: {reply.error.reason or f'error {reply.error.code}'}"
            log.warning("%s", why)
            return Ended(self._clock(), sent.id, why)
        self._arrived[sent.id] = sent, reply
        return Uploaded(self._clock(), sent.id, _examples(reply))

    def _evaluated(self, sent: _Sent, reply: Message) -> None:
        if reply.has_error():
            log.warning("node %d did not evaluate round %d: %s", sent.node, sent.evaluates, reply.error.reason)
            return
        metrics = {name: value for record in reply.content.metric_records.values() for name, value in record.items()}
        self._journal.evaluated(sent.evaluates, str(sent.node), _sums(metrics))

    def arrival(self, id: str) -> Arrival:
        """The reply as an update: its weights minus those that were sent; raises UmbelError on one that does not fit."""
        sent, reply = self._arrived[id]
        who = f"the update of node {sent.node}"
        records = list(reply.content.array_records.values())
        metrics = list(reply.content.metric_records.values())
        if len(records) != 1 or len(metrics) != 1:
            raise UmbelError(
                f"{who} should hold one record of arrays and one of metrics, got {len(records)} and {len(metrics)}"
            )
        examples = metrics[0].get("num-examples")
        if not isinstance(examples, int | float) or not 0 < examples < float("inf"):
            raise UmbelError(f"{who} should have a positive number of examples, got {examples!r}")
        specs = [WeightSpec(name, weight.shape, weight.dtype.name) for name, weight in sent.weights.items()]
        try:
            after = flower_messages.tensors_of(records[0])
            check(after, specs, who)
        except (TypeError, ValueError) as error:
            raise UmbelError(f"{who} cannot be read: {error}") from error
        self._bytes += sum(weight.nbytes for weight in after.values())
        sums = _sums({name: value for name, value in metrics[0].items() if name != "num-examples"})
        return Arrival(f"node {sent.node}", from_weights(after, sent.weights), int(examples), sums)

    def finish(self, finish: Finish) -> None:
        """Forget the assignment."""
        self._arrived.pop(finish.id, None)
        self._sent = {message: sent for message, sent in self._sent.items() if sent.id != finish.id}

    def abandon(self, abandon: Abandon) -> None:
        """Note it in the journal."""
        self._journal.abandoned(abandon.number, abandon.reason)

    def commit(self, checkpoint: NewCheckpoint) -> dict[str, float]:
        """Remember the checkpoint in the journal."""
        metrics = self._journal.committed(checkpoint)
        for id, _ in checkpoint.contributors:
            self._arrived.pop(id, None)
        return metrics

    def cost(self) -> Cost:
        """The cost since this process began."""
        return Cost((self._clock() - self._began) / 3600, self._bytes)


def _examples(reply: Message) -> int:
    """The number of examples that a reply claims; 1 when it names none, so that vetting refuses it."""
    for record in reply.content.metric_records.values():
        examples = record.get("num-examples")
        if isinstance(examples, int | float) and 0 < examples < float("inf"):
            return int(examples)
    return 1


def _sums(metrics: Mapping[str, object]) -> Sums:
    return {
        name: [float(v) for v in value] if isinstance(value, list) else float(value)  # type: ignore[arg-type]
        for name, value in metrics.items()
    }
