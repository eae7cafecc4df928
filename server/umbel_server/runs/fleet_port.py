"""The rounds' port to a real fleet: assignments in the database, commands in the outbox, updates as blobs."""

import logging
import queue
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from flwr.app import Message
from sqlalchemy import and_, bindparam, func, select, update
from sqlalchemy.orm import Session

from umbel.errors import TensorError, UmbelError
from umbel.messages import Blob
from umbel.metrics import finite, results
from umbel.plan import Plan
from umbel.tensors import Tensors, check, dump, load
from umbel_server import moments
from umbel_server.aggregation import (
    Buffers,
    Update,
    WeightPieces,
    from_blob,
    largest_header,
    largest_update,
    passes,
)
from umbel_server.aggregation.device_metrics import check_metrics
from umbel_server.commands.assignment_transitions import Moved
from umbel_server.commands.outbox import Addressed
from umbel_server.devices import register as devices
from umbel_server.fleet.parts import Fleet
from umbel_server.rounds.assignments import LIVE, may_follow
from umbel_server.rounds.engine import OpenRound, Record
from umbel_server.rounds.events import Abandon, Accepted, Ended, Event, Finish, Offer, Open, Order, Uploaded
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.rounds.selection import Candidate
from umbel_server.rounds.works import Work
from umbel_server.runs.assigning import Assigning, finish_assignment
from umbel_server.runs.port import LOOK_SECONDS, Arrival, Checkpointing, Spent, Start
from umbel_server.runs.settings import RunSettings
from umbel_server.storage.database import ASSIGNMENTS, DEVICES, Assignment, Checkpoint, Device, Round, Run, batches

log = logging.getLogger("umbel.runs")

NO_UPDATE = Update({}, WeightPieces({}, {}))
_ARRIVED = (
    select(
        *ASSIGNMENTS.c["device", "command", "update", "bytes_up", "examples", "metrics"],
        DEVICES.c.state,
        DEVICES.c.examples.label("reported"),
    )
    .join_from(
        ASSIGNMENTS,
        DEVICES,
        and_(ASSIGNMENTS.c.population == DEVICES.c.population, ASSIGNMENTS.c.device == DEVICES.c.id),
    )
    .where(ASSIGNMENTS.c.id == bindparam("of"))
)
_MARK = update(ASSIGNMENTS).where(ASSIGNMENTS.c.id == bindparam("of"))


class FleetPort:
    """The devices of one run's population; see umbel_server.runs.port.Port.

    `evaluate` gives held-out metrics of weights, or is None when nothing is held out; work leaves only `sealed` if so wanted.
    What devices say comes through the exchange, from another thread; `order` and `leave` are for any thread.
    """

    def __init__(
        self,
        fleet: Fleet,
        run: str,
        plan: Plan,
        plan_blob: Blob,
        evaluate: Callable[[Tensors], dict[str, float]] | None,
        clock: Callable[[], float],
        sealed: bool = False,
    ) -> None:
        self._fleet, self.run, self.plan, self._plan_blob = fleet, run, plan, plan_blob
        self._evaluate, self._clock, self._sealed = evaluate, clock, sealed
        self._policy = RoundPolicy()
        self._attempt = 0
        self._news: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._left = False
        self._weights = Blob.of(b"")
        self._buffers = Buffers()
        with fleet.database.transaction() as session:
            self.population = session.get_one(Run, run).population
        self._assigning = Assigning(fleet, run, self.population, plan, plan_blob, sealed)

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
        """Devices send updates in the weights' own dtypes."""
        return ""

    def order(self, order: Order) -> None:
        """Pass on an administrator's word."""
        self._news.put(order)

    def leave(self) -> None:
        """Make `wait` return None: the server stops, the run goes on after its next start."""
        self._left = True
        self._news.put(None)

    def close(self) -> None:
        """Let go of the memory that updates were read into: nobody drives the run through this port any more."""
        self._buffers.close()

    def heard(self, moved: Moved | None) -> None:
        """Take in that a device moved an assignment on, or (None) that the fleet changed."""
        now = self._clock()
        if moved is None:
            self._news.put(None)
        elif moved.state == "accepted":
            self._news.put(Accepted(now, moved.id))
        elif moved.state == "uploaded":
            self._news.put(Uploaded(now, moved.id, moved.examples))
        else:
            self._news.put(Ended(now, moved.id, f"{moved.device} {moved.state}: {moved.reason}"))

    def listen(self) -> None:
        """Hear of what devices do from now on; a second time changes nothing."""
        self._fleet.exchange.listen(self.run, self.population, self.heard)

    def wait(self, until: float) -> list[Event] | None:
        """What happened, at the latest at `until`; None to leave."""
        events: list[Event] = []
        patience = max(0.0, min(until - self._clock(), 3600.0))
        try:
            news = self._news.get(timeout=patience) if patience else self._news.get_nowait()
            while True:
                if news is not None:
                    events.append(news)
                news = self._news.get_nowait()
        except queue.Empty:
            if self._clock() < until or self._left:
                return None if self._left else events
        # A deadline may act now: what had come before it, while the database was locked, counts as in time.
        self._fleet.exchange.catch_up()
        with suppress(queue.Empty):
            while True:
                if (news := self._news.get_nowait()) is not None:
                    events.append(news)
        return None if self._left else events

    def next_look(self, now: float) -> float:
        """As Port."""
        return now + LOOK_SECONDS

    def start(self, settings: RunSettings) -> Start:
        """The newest checkpoint and the round under way; a new run commits its first weights as checkpoint 0 first."""
        self._policy = settings.policy
        with self._fleet.database.transaction() as session:
            newest = self._newest(session)
        if newest is None:
            self._commit_first()
        self.listen()
        with self._fleet.database.transaction() as session:
            newest = self._newest(session)
            assert newest is not None
            record = self._record(session, newest.round, settings.seed, settings.rounds)
        self._attempt = record.open.attempt if record.open is not None else 0
        data = self._fleet.blobs.get(newest.weights)
        weights = load(data)
        check(weights, self.plan.manifest.weights, "the weights of the run's newest checkpoint")
        self._weights = Blob.of(data)
        strategy = load(self._fleet.blobs.get(newest.strategy)) if newest.strategy else {}
        return Start(record, weights, strategy, newest.metrics)

    def _newest(self, session: Session) -> Checkpoint | None:
        query = select(Checkpoint).where(Checkpoint.run == self.run).order_by(Checkpoint.round.desc()).limit(1)
        return session.scalars(query).one_or_none()

    def _commit_first(self) -> None:
        with self._fleet.database.transaction() as session:
            address = session.get_one(Run, self.run).weights
        weights = load(self._fleet.blobs.get(address)) if address else self.plan.initial_weights()
        check(weights, self.plan.manifest.weights, "the weights that the run starts from")
        self.commit(Checkpointing(0, 0, weights, {}, {}, (), self._clock()))

    def _record(self, session: Session, version: int, seed: int, rounds: int) -> Record:
        run = session.get_one(Run, self.run)
        attempts = session.scalars(
            select(Round).where(Round.run == self.run, Round.number == version + 1).order_by(Round.attempt)
        ).all()
        opened = [attempt for attempt in attempts if attempt.state == "open"]
        live = session.scalars(
            select(Assignment)
            .where(Assignment.run == self.run, Assignment.kind == "train", Assignment.state.in_(LIVE))
            .order_by(Assignment.updated, Assignment.id)
        )
        made = session.scalar(select(func.count()).where(Assignment.run == self.run, Assignment.kind == "train"))
        return Record(
            run=self.run,
            seed=seed,
            policy=self._policy,
            rounds=rounds,
            version=version,
            open=_open_round(opened[-1], run.resumed) if opened else None,
            work=tuple(_work(assignment) for assignment in live),
            failures=sum(attempt.state == "abandoned" and attempt.closed > run.resumed for attempt in attempts),
            attempts=attempts[-1].attempt + 1 if attempts else 0,
            made=made or 0,
        )

    def node(self, device: str) -> int:
        """The Flower node id of a device."""
        return devices.node_id(self.population, device)

    def candidates(self) -> tuple[Candidate, ...]:
        """Every device of the population."""
        return tuple(candidate(device) for device in self._fleet.devices.list(self.population))

    def offer(self, opened: Open | None, offers: Sequence[tuple[Offer, Message]]) -> None:
        """Note the assignments and what they open in one transaction, and send their commands; raises QuotaReached before."""
        if opened is not None:
            self._check_quotas()
            self._attempt = opened.attempt
        with self._fleet.database.transaction() as session:
            if opened is not None:
                session.merge(  # it is there already when it is opened again
                    Round(
                        run=self.run,
                        number=opened.number,
                        attempt=opened.attempt,
                        opened=opened.opened,
                        closes=opened.closes,
                        wanted=opened.wanted,
                        quorum=self._policy.quorum,
                    )
                )
            commands = self._assign(
                session, [(offer, message, self._weights) for offer, message in offers], self._attempt
            )
        self._fleet.exchange.send(commands)

    def _check_quotas(self) -> None:
        """Raise QuotaReached when the population cannot store a checkpoint and an update more, or a quorum move theirs today."""
        size = self._weights.size
        travels = size if self._weights.data is None else 0
        self._fleet.quotas.check_round(self.population, 2 * size, self._policy.quorum * 2 * travels)

    def assign(self, offers: Sequence[tuple[Offer, Message, Blob]]) -> None:
        """Note assignments outside any round, each with its own weights, in one transaction, and send their commands."""
        with self._fleet.database.transaction() as session:
            self._fleet.ownership.claim(session, self.population, *(weights for _, _, weights in offers))
            commands = self._assign(session, offers, 0)
        self._fleet.exchange.send(commands)

    def store(self, weights: Tensors) -> Blob:
        """Weights as a blob."""
        return self._fleet.blobs.put(dump(weights))

    def states(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """State and reason of assignments."""
        query = select(Assignment.id, Assignment.state, Assignment.reason).where(Assignment.id.in_(ids))
        with self._fleet.database.transaction() as session:
            return {id: (state, reason) for id, state, reason in session.execute(query)}

    def evaluate(self, number: int, messages: Mapping[str, Message]) -> None:
        """Offer evaluations of the newest checkpoint; the exchange takes in what comes."""
        closes = self._clock() + self._policy.deadline
        offers = [
            (Offer(secrets.token_hex(8), device, number, closes), message, self._weights)
            for device, message in messages.items()
        ]
        with self._fleet.database.transaction() as session:
            commands = self._assign(session, offers, 0)
        self._fleet.exchange.send(commands)

    def _assign(self, session: Session, offers: Sequence[tuple[Offer, Message, Blob]], attempt: int) -> list[Addressed]:
        commands, ended = self._assigning.note(session, offers, attempt, self._policy.requires, self._clock())
        for event in ended:
            self._news.put(event)
        return commands

    def arrival(self, id: str) -> Arrival:
        """The update of an assignment; raises UmbelError when its metrics or its blob cannot be used."""
        with self._fleet.database.transaction() as session:
            row = session.execute(_ARRIVED, {"of": id}).one()
        if row.state != devices.ACTIVE:
            raise UmbelError(f"{row.device} was {row.state} before its update was folded")
        check_metrics(row.device, row.metrics, self.plan.manifest.metrics)
        specs = self.plan.manifest.weights
        most = largest_update(specs)
        if row.bytes_up > most:  # it is read whole, so its size is looked at first
            raise UmbelError(f"the update of {row.device} should have at most {most} bytes, it has {row.bytes_up}")
        try:
            blobs = self._fleet.received_blobs.find(self.population, row.command, row.update) if row.update else None
            update = NO_UPDATE
            if blobs and row.update:
                update = from_blob(blobs, row.update, self._buffers, largest_header(specs))
        except TensorError as error:
            raise UmbelError(f"the update of {row.device}: {error}") from error
        return Arrival(row.device, update, row.examples, row.metrics, row.reported)

    def finish(self, finish: Finish) -> None:
        """Give an assignment its final state unless it has one, and tell its device if that is still at work."""
        finish_assignment(self._fleet, finish, self._clock())

    def abandon(self, abandon: Abandon) -> None:
        """Close the attempt; one that never had its devices is noted too."""
        now = self._clock()
        with self._fleet.database.transaction() as session:
            row = session.get(Round, (self.run, abandon.number, abandon.attempt))
            if row is None:
                row = Round(
                    run=self.run,
                    number=abandon.number,
                    attempt=abandon.attempt,
                    opened=now,
                    closes=now,
                    wanted=0,
                    quorum=self._policy.quorum,
                )
                session.add(row)
            row.state, row.reason, row.closed = "abandoned", abandon.reason, now

    def commit(self, checkpoint: Checkpointing) -> dict[str, float]:
        """Store the weights, evaluate them, and commit: checkpoint, contributors, round and the run's progress at once."""
        began = time.perf_counter()
        data = dump(checkpoint.weights)
        weights = self._fleet.blobs.put(data, durable=True)
        strategy = None
        if checkpoint.strategy:
            strategy = self._fleet.blobs.put(dump(checkpoint.strategy), durable=True)
        metrics = finite(self._evaluate(checkpoint.weights)) if self._evaluate is not None else {}
        fleet = finite(results(self.plan.manifest.metrics, checkpoint.fleet_sums)) if checkpoint.fleet_sums else {}
        now = self._clock()
        with self._fleet.database.transaction() as session:
            session.add(
                Checkpoint(
                    run=self.run,
                    round=checkpoint.number,
                    weights=weights.sha256,
                    strategy=strategy.sha256 if strategy is not None else None,
                    metrics=metrics,
                    fleet_metrics=fleet,
                    contributors=len(checkpoint.contributors),
                    started=checkpoint.opened,
                    committed=now,
                )
            )
            self._fleet.ownership.claim(
                session, self.population, weights, *([strategy] if strategy is not None else [])
            )
            folded = self._mark_contributors(session, checkpoint, now)
            opened = session.get(Round, (self.run, checkpoint.number, checkpoint.attempt))
            if opened is not None:
                opened.state, opened.closed = "committed", now
                opened.seconds = {**checkpoint.seconds, "commit": time.perf_counter() - began}
            run = session.get_one(Run, self.run)
            run.round, run.updated = checkpoint.number, now
            session.flush()
            if checkpoint.number:
                moments.reached("committing")
        self._fleet.received_blobs.remove_soon(folded)
        self._weights = Blob.of(data)
        log.info("run %s round %d committed: %s", self.run, checkpoint.number, metrics or fleet)
        return metrics

    def _mark_contributors(self, session: Session, checkpoint: Checkpointing, now: float) -> list[str]:
        """Give the assignments that a checkpoint is made of their final state; returns their commands."""
        commands = []
        for some in batches([id for id, _ in checkpoint.contributors]):
            rows = select(*ASSIGNMENTS.c["id", "state", "command"]).where(ASSIGNMENTS.c.id.in_(some)).with_for_update()
            for row in session.execute(rows):
                if not may_follow(row.state, "folded"):
                    raise UmbelError(f"assignment {row.id} is {row.state}, it cannot be folded into a checkpoint")
                commands.append(row.command)
        if len(commands) != len(checkpoint.contributors):
            raise UmbelError(
                f"{len(checkpoint.contributors)} assignments contribute to checkpoint {checkpoint.number}, "
                f"{len(commands)} of them are known"
            )
        final = {"state": "folded", "folded_into": checkpoint.number, "updated": now}
        if checkpoint.contributors:
            session.execute(_MARK, [{"of": id, "weight": weight, **final} for id, weight in checkpoint.contributors])
        return commands

    def spent(self) -> Spent:
        """Hours since the run was started, and the bytes of weights and updates that travelled for it."""
        total = func.coalesce(func.sum(Assignment.bytes_down + Assignment.bytes_up), 0)
        with self._fleet.database.transaction() as session:
            created = session.get_one(Run, self.run).created
            travelled = session.scalar(select(total).where(Assignment.run == self.run))
        return Spent((self._clock() - created) / 3600, int(travelled or 0))


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


def _open_round(row: Round, resumed: float) -> OpenRound:
    return OpenRound(row.number, row.attempt, row.opened, row.closes, row.wanted, row.opened <= resumed)


def _work(row: Assignment) -> Work:
    base, examples = row.round - 1, row.examples
    match row.state:
        case "uploaded":
            return Work(row.id, row.device, base, row.closes, "arrived", examples)
        case "accepted":
            return Work(row.id, row.device, base, row.closes, "accepted")
        case _:
            return Work(row.id, row.device, base, row.closes)
