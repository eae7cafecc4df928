"""Flower's Grid over MQTT and HTTP: assignments go out as commands, updates come back as blobs."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from sqlalchemy import select

from umbel import tensors
from umbel.errors import UmbelError
from umbel.messages import Blob, Cancel, Evaluate, Train
from umbel.metrics import Sums, sum_shapes
from umbel.plan import Plan
from umbel.tensors import Tensors
from umbel_server import flower_messages, moments
from umbel_server.blobs import Blobs
from umbel_server.database import Assignment, Command, Database
from umbel_server.devices import Devices
from umbel_server.exchange import LIVE, Exchange
from umbel_server.outbox import OPEN, Outbox
from umbel_server.round_loop import Journal

REJECTED, UNFINISHED = 1, 2
"""Codes of the error replies that a strategy sees."""


@dataclass(frozen=True)
class Fleet:
    """The parts of the server that a grid works with."""

    database: Database
    devices: Devices
    outbox: Outbox
    exchange: Exchange
    blobs: Blobs


@dataclass(frozen=True)
class _Pending:
    message: Message
    assignment: str
    command: str
    device: str
    weights: Tensors


class FleetGrid(Grid):
    """The devices of one population as Flower nodes, for one run.

    Every message becomes an assignment, a row in the database, and a `train` or `evaluate` command that the outbox
    repeats until it is answered. Nodes are the devices that are online. `interrupted` ends a wait early.
    """

    def __init__(
        self,
        fleet: Fleet,
        run: str,
        population: str,
        plan: Plan,
        plan_blob: Blob,
        journal: Journal,
        interrupted: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.journal = journal
        self._fleet = fleet
        self._run_name, self._population = run, population
        self._plan, self._plan_blob = plan, plan_blob
        self._interrupted = interrupted
        self._clock = clock
        self._pending: dict[str, _Pending] = {}
        self._run = flower_messages.empty_run(int(run, 16))

    def set_run(self, run: FlowerRun) -> None:
        """Set the Flower run that messages name."""
        self._run = run

    @property
    def run(self) -> FlowerRun:
        """The Flower run that messages name."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one node; see flwr.serverapp.Grid."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The node ids of the devices that are online, in order."""
        return sorted(device.node_id for device in self._fleet.devices.list(self._population) if device.online)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Offer one assignment for each message; returns the messages' ids."""
        return self._push(list(messages), deadline=None)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are here, each once; an assignment that failed is an error reply."""
        return self._pull([id for id in message_ids if id in self._pending])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Offer assignments and wait until each is settled or `timeout` seconds passed; then the rest expire."""
        batch = list(messages)
        if not batch:
            return []
        deadline = self._clock() + (timeout if timeout is not None else max(m.metadata.ttl for m in batch))
        ids = self._push(batch, deadline)
        commands = {self._pending[id].command for id in ids}
        self._fleet.exchange.wait(commands, deadline - self._clock(), self._interrupted)
        replies = self._pull(ids)
        self._abandon([id for id in ids if id in self._pending])
        return replies

    def _push(self, batch: list[Message], deadline: float | None) -> list[str]:
        names = {device.node_id: device.id for device in self._fleet.devices.list(self._population)}
        encoded: dict[int, tuple[Blob, Tensors]] = {}
        ids, commands = [], []
        with self._fleet.database.transaction() as session:
            for message in batch:
                node = message.metadata.dst_node_id
                if node not in names:
                    raise UmbelError(f"node {node} is not a device of population {self._population}")
                record = next(iter(message.content.array_records.values()))
                if id(record) not in encoded:
                    weights = flower_messages.tensors_of(record)
                    encoded[id(record)] = (self._fleet.blobs.put(tensors.dump(weights)), weights)
                blob, weights = encoded[id(record)]
                assignment = secrets.token_hex(8)
                config = next(iter(message.content.config_records.values()), ConfigRecord())
                until = deadline if deadline is not None else self._clock() + message.metadata.ttl
                body = self._body(message.metadata.message_type, assignment, config, blob, until)
                command = self._fleet.outbox.add(
                    session, self._population, names[node], body, max(0.0, until - self._clock())
                )
                now = self._clock()
                session.add(
                    Assignment(
                        id=assignment,
                        run=self._run_name,
                        round=body.round,
                        population=self._population,
                        device=names[node],
                        command=command.id,
                        kind=message.metadata.message_type,
                        offered=now,
                        updated=now,
                    )
                )
                message_id = flower_messages.give_id(message)
                self._pending[message_id] = _Pending(message, assignment, command.id, names[node], weights)
                ids.append(message_id)
                commands.append(command)
        self._fleet.exchange.watch([command.id for command in commands])
        self._fleet.exchange.send(commands)
        moments.reached("offered")
        return ids

    def _body(
        self, kind: str, assignment: str, config: ConfigRecord, weights: Blob, deadline: float
    ) -> Train | Evaluate:
        number = int(_number(config, "server-round", 0))
        if kind == MessageType.EVALUATE:
            return Evaluate(assignment, self._run_name, number, self._plan_blob, weights, deadline)
        return Train(
            assignment,
            self._run_name,
            number,
            self._plan_blob,
            weights,
            deadline,
            learning_rate=_number(config, "learning-rate", self._plan.manifest.learning_rate),
            epochs=int(_number(config, "epochs", 1)),
            max_steps=int(_number(config, "max-steps", 0)),
            proximal_mu=_number(config, "proximal-mu", 0.0),
            seed=int(_number(config, "seed", 0)),
        )

    def _pull(self, ids: list[str]) -> list[Message]:
        replies = []
        wanted = {self._pending[id].assignment: id for id in ids}
        with self._fleet.database.transaction() as session:
            query = select(Assignment).where(Assignment.id.in_(wanted), Assignment.state.not_in(LIVE))
            settled = list(session.scalars(query))
        for assignment in settled:
            message_id = wanted[assignment.id]
            pending = self._pending.pop(message_id)
            self._fleet.exchange.unwatch([pending.command])
            replies.append(self._reply(pending, assignment))
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def _reply(self, pending: _Pending, assignment: Assignment) -> Message:
        if assignment.state != "uploaded":
            return flower_messages.error_reply(
                pending.message, UNFINISHED, f"{pending.device}: {assignment.state}: {assignment.reason}"
            )
        try:
            metrics = self._vetted_metrics(assignment)
            weights = self._vetted_weights(pending, assignment) if assignment.update else {}
        except UmbelError as error:
            self._reject(assignment, str(error))
            return flower_messages.error_reply(pending.message, REJECTED, f"{pending.device}: {error}")
        return flower_messages.reply(pending.message, weights, metrics)

    def _vetted_metrics(self, assignment: Assignment) -> Sums:
        expected = sum_shapes(self._plan.manifest.metrics)
        if assignment.metrics.keys() != expected.keys():
            raise UmbelError(f"the metrics should be {sorted(expected)}, got {sorted(assignment.metrics)[:9]}")
        if assignment.examples < 1:
            raise UmbelError(f"an update of at least one example was expected, got {assignment.examples}")
        for name, value in assignment.metrics.items():
            if np.shape(value) != expected[name]:
                raise UmbelError(f"metric {name} should have shape {list(expected[name])}, got {list(np.shape(value))}")
            if not np.isfinite(value).all():
                raise UmbelError(f"metric {name} is not finite")
        return {"num-examples": float(assignment.examples), **assignment.metrics}

    def _vetted_weights(self, pending: _Pending, assignment: Assignment) -> Tensors:
        delta = tensors.load(self._fleet.blobs.get(assignment.update or ""))
        tensors.check(delta, self._plan.manifest.weights, f"the update of {pending.device}")
        return {name: weight + delta[name] for name, weight in pending.weights.items()}

    def _reject(self, assignment: Assignment, reason: str) -> None:
        with self._fleet.database.transaction() as session:
            row = session.get_one(Assignment, assignment.id)
            row.state, row.reason, row.updated = "rejected", reason, self._clock()

    def _abandon(self, ids: list[str]) -> None:
        """Expire what nobody finished, and tell those devices to stop."""
        left = [self._pending.pop(id) for id in ids]
        self._fleet.exchange.unwatch([pending.command for pending in left])
        cancels = []
        state, reason = (
            ("cancelled", "the run was stopped") if self._interrupted() else ("expired", "not finished by the deadline")
        )
        with self._fleet.database.transaction() as session:
            for pending in left:
                assignment = session.get_one(Assignment, pending.assignment)
                command = session.get_one(Command, pending.command)
                if assignment.state in LIVE or assignment.state == "uploaded":
                    assignment.state, assignment.reason, assignment.updated = state, reason, self._clock()
                if command.state in OPEN:
                    command.state, command.reason, command.updated = state, reason, self._clock()
                cancels.append(
                    self._fleet.outbox.add(session, self._population, pending.device, Cancel(pending.assignment), 60.0)
                )
        self._fleet.exchange.send(cancels)


def _number(config: Mapping[str, object], name: str, default: float) -> float:
    value = config.get(name, default)
    if not isinstance(value, int | float):
        raise UmbelError(f"{name} should be a number, got {value!r}")
    return float(value)
