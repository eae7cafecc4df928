"""The rounds' port to a real fleet: assignments in the database, commands in the outbox, updates as blobs."""

import secrets
from collections.abc import Callable, Mapping, Sequence

from flwr.app import Message
from sqlalchemy import select

from umbel.messages import Blob
from umbel.tensors import Tensors, check, dump, load
from umbel_server.aggregation import passes
from umbel_server.devices import register as devices
from umbel_server.rounds.events import Abandon, Event, Finish, Offer, Open, Order
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.rounds.selection import Candidate
from umbel_server.runs.arrivals import Arrivals
from umbel_server.runs.checkpoints import Checkpoints
from umbel_server.runs.durable_record import DurableRecord
from umbel_server.runs.event_queue import EventQueue
from umbel_server.runs.fleet_run import FleetRun
from umbel_server.runs.offers import Offers, finish_assignment
from umbel_server.runs.port import LOOK_SECONDS, Arrival, Cost, NewCheckpoint, Start
from umbel_server.runs.settings import RunSettings
from umbel_server.storage.database import Assignment, Device


class FleetPort:
    """The devices of one run's population; see umbel_server.runs.port.Port.

    `evaluate` gives held-out metrics of weights, or is None when nothing is held out. `order` and `leave` are for any thread,
    the other methods for the thread that drives the run.
    """

    def __init__(self, run: FleetRun, evaluate: Callable[[Tensors], dict[str, float]] | None) -> None:
        self.run = run
        self._events = EventQueue(run)
        self._record = DurableRecord(run)
        self._offers = Offers(run, self._events.put)
        self._arrivals = Arrivals(run)
        self._checkpoints = Checkpoints(run, evaluate)
        self._policy = RoundPolicy()
        self._attempt = 0
        self._weights = Blob.of(b"")

    @property
    def now(self) -> float:
        """The time in Unix seconds."""
        return self.run.now

    @property
    def threads(self) -> int:
        """As Port."""
        return passes.CORES

    @property
    def delta_dtype(self) -> str:
        """Devices send updates in the weights' own dtypes."""
        return ""

    def order(self, order: Order) -> None:
        """Pass on an administrator's order."""
        self._events.put(order)

    def leave(self) -> None:
        """Make `wait` return None: the server stops, the run goes on after its next start."""
        self._events.leave()

    def close(self) -> None:
        """Take no more events, and free the memory that updates were read into, once nothing drives the run through this port any more."""
        self._events.close()
        self._arrivals.close()

    def listen(self) -> None:
        """Begin to take events from the exchange; a second call changes nothing."""
        self._events.listen()

    def wait(self, until: float) -> list[Event] | None:
        """As Port."""
        return self._events.wait(until)

    def next_look(self, now: float) -> float:
        """As Port."""
        return now + LOOK_SECONDS

    def start(self, settings: RunSettings) -> Start:
        """The newest checkpoint and the round under way; a new run commits its first weights as checkpoint 0 first."""
        self._policy = settings.policy
        if self._record.newest() is None:
            self._commit_first()
        self.listen()
        newest = self._record.newest()
        assert newest is not None
        record = self._record.read(newest.round, settings)
        self._attempt = record.open.attempt if record.open is not None else 0
        data = self.run.fleet.blobs.get(newest.weights)
        weights = load(data)
        check(weights, self.run.plan.manifest.weights, "the weights of the run's newest checkpoint")
        self._weights = Blob.of(data)
        strategy = load(self.run.fleet.blobs.get(newest.strategy)) if newest.strategy else {}
        return Start(record, weights, strategy, newest.metrics, self.run.plan.manifest.untrained)

    def _commit_first(self) -> None:
        address = self._record.first_weights()
        weights = load(self.run.fleet.blobs.get(address)) if address else self.run.plan.initial_weights()
        check(weights, self.run.plan.manifest.weights, "the weights that the run starts from")
        self.commit(NewCheckpoint(0, 0, weights, {}, {}, (), self.now))

    def node(self, device: str) -> int:
        """The Flower node id of a device."""
        return devices.node_id(self.run.population, device)

    def candidates(self) -> tuple[Candidate, ...]:
        """Every device of the population."""
        return tuple(candidate(device) for device in self.run.fleet.devices.list(self.run.population))

    def offer(self, opened: Open | None, offers: Sequence[tuple[Offer, Message]]) -> None:
        """As Port; raises QuotaReached before anything is noted."""
        attempt = self._attempt if opened is None else opened.attempt
        self._offers.in_round(opened, offers, self._weights, attempt, self._policy)
        self._attempt = attempt

    def assign(self, offers: Sequence[tuple[Offer, Message, Blob]]) -> None:
        """Offer assignments outside any round, each with its own weights."""
        self._offers.outside_rounds(offers, self._policy.requires, claim=True)

    def store(self, weights: Tensors) -> Blob:
        """Weights as a blob."""
        return self.run.fleet.blobs.put(dump(weights))

    def states(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """State and reason of assignments."""
        query = select(Assignment.id, Assignment.state, Assignment.reason).where(Assignment.id.in_(ids))
        with self.run.fleet.database.transaction() as session:
            return {id: (state, reason) for id, state, reason in session.execute(query)}

    def evaluate(self, number: int, messages: Mapping[str, Message]) -> None:
        """Offer evaluations of the newest checkpoint; the exchange takes in the answers."""
        closes = self.now + self._policy.deadline
        offers = [
            (Offer(secrets.token_hex(8), device, number, closes), message, self._weights)
            for device, message in messages.items()
        ]
        self._offers.outside_rounds(offers, self._policy.requires)

    def arrival(self, id: str) -> Arrival:
        """The update of an assignment; raises UmbelError when its metrics or its blob cannot be used."""
        return self._arrivals.read(id)

    def finish(self, finish: Finish) -> None:
        """Give an assignment its final state unless it has one; tell its device to stop if that is still at work."""
        finish_assignment(self.run.fleet, finish, self.now)

    def abandon(self, abandon: Abandon) -> None:
        """As Port."""
        self._checkpoints.abandon(abandon, self._policy.quorum)

    def commit(self, checkpoint: NewCheckpoint) -> dict[str, float]:
        """As Port: checkpoint, contributors, round and the run's progress in one transaction."""
        self._weights, metrics = self._checkpoints.commit(checkpoint)
        return metrics

    def cost(self) -> Cost:
        """Hours since the run was started, and the bytes of weights and updates that travelled for it."""
        return self._record.cost()


def candidate(device: Device) -> Candidate:
    """A device as selection sees it."""
    return Candidate(
        device.id,
        device.online,
        devices.labels_of(device),
        device.examples,
        tuple(device.reasons),
        device.quarantined,
        device.assigned,
        "" if device.state == devices.ACTIVE else device.state,
    )
