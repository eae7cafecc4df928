"""The server's side of MQTT: commands go out from the outbox; statuses, acknowledgements and results come in."""

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from umbel import messages, topics
from umbel.errors import UmbelError
from umbel.messages import Ack, Answered, Blob, Evaluated, Exported, Result, Status, Trained
from umbel.mqtt import Link
from umbel_server import moments
from umbel_server.blobs import Blobs
from umbel_server.database import Assignment, Command, Database
from umbel_server.devices import Devices
from umbel_server.outbox import Addressed, Outbox

log = logging.getLogger("umbel.exchange")

SWEEP_SECONDS = 1.0
RESEND_SECONDS = 10.0
CLIENT_ID = "umbel-server"
LIVE = ("offered", "accepted")


class Exchange:
    """Publishes commands and takes in what devices say, each message verified with its device's key.

    `on_settled(command_id)` is called in the link's thread after a command got its final state in the database, and
    `on_changed()` after anything else changed.
    """

    def __init__(
        self, database: Database, devices: Devices, outbox: Outbox, blobs: Blobs, host: str, port: int
    ) -> None:
        self._database, self._devices, self._outbox, self._blobs = database, devices, outbox, blobs
        self._link = Link(
            host,
            port,
            CLIENT_ID,
            tuple(topics.everyone(channel) for channel in ("status", "ack", "result")),
            self._received,
            on_down=self._down,
        )
        self._changed = threading.Condition()
        self._settled: set[str] = set()
        self._watched: set[str] = set()
        self._stopping = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="outbox", daemon=True)

    def start(self) -> None:
        """Connect, and begin to expire and repeat commands."""
        self._devices.forget_presence()
        self._link.start()
        self._sweeper.start()

    def stop(self) -> None:
        """Disconnect."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        self._link.stop()
        if self._sweeper.ident is not None:
            self._sweeper.join(5)

    @property
    def is_up(self) -> bool:
        """Whether the broker is connected."""
        return self._link.is_up

    def send(self, commands: Iterable[Addressed]) -> None:
        """Publish commands that the outbox holds; what cannot be sent now goes when the device comes back."""
        for command in commands:
            self._link.publish(topics.topic(command.population, command.device, "command"), command.token)

    def watch(self, commands: Iterable[str]) -> None:
        """Remember when these commands settle, until `unwatch`."""
        with self._changed:
            self._watched.update(commands)

    def unwatch(self, commands: Iterable[str]) -> None:
        """Forget these commands."""
        with self._changed:
            self._watched.difference_update(commands)
            self._settled.difference_update(commands)

    def wait(self, commands: set[str], seconds: float, interrupted: Callable[[], bool]) -> set[str]:
        """Wait until all watched `commands` have settled, `seconds` passed, or `interrupted`; returns the settled ones."""
        with self._changed:
            self._changed.wait_for(
                lambda: commands <= self._settled or interrupted() or self._stopping.is_set(), timeout=max(0.0, seconds)
            )
            return commands & self._settled

    def wake(self) -> None:
        """Make every waiter look again."""
        with self._changed:
            self._changed.notify_all()

    def _received(self, topic: str, payload: bytes) -> None:
        try:
            address = topics.parse(topic)
            if not payload:
                return  # a retained message was cleared
            key = self._devices.key(address.population, address.device)
            message: Status | Ack | Result
            if address.channel == "status":
                message = messages.decode(payload, Status, key)
            elif address.channel == "ack":
                message = messages.decode(payload, Ack, key)
            else:
                message = messages.decode(payload, Result, key)
            if (message.population, message.device) != (address.population, address.device):
                raise UmbelError(f"it speaks for {message.population}/{message.device}")
        except UmbelError as error:
            log.warning("refused a message on %s: %s", topic, error)
            return
        if isinstance(message, Status):
            if self._devices.heard(message):
                self._send_waiting(message.population, message.device)
        elif isinstance(message, Ack):
            self._acknowledged(message)
        else:
            self._completed(message)

    def _send_waiting(self, population: str, device: str) -> None:
        waiting = self._outbox.waiting(population, device)
        self.send(waiting)
        if waiting:
            self._outbox.touch([command.id for command in waiting])

    def _acknowledged(self, ack: Ack) -> None:
        with self._database.transaction() as session:
            command = self._outbox.acknowledge(session, ack)
            if command is None:
                return
            if ack.state == "accepted":
                _move(session, command, "accepted", "")
            elif ack.state != "done":
                _move(session, command, ack.state, ack.reason)
        if ack.state == "accepted":
            moments.reached("accepted")
        else:
            self._announce([ack.command])

    def _completed(self, result: Result) -> None:
        if (reason := self._take_blob(result)) is not None:
            self._acknowledged(Ack(result.command, result.population, result.device, "rejected", result.at, reason))
            return
        with self._database.transaction() as session:
            command = self._outbox.complete(session, result)
            if command is None:
                return
            outcome = result.outcome
            if isinstance(outcome, Trained | Evaluated):
                assignment = _move(session, command, "uploaded", "")
                if assignment is not None:
                    assignment.examples, assignment.metrics = outcome.examples, outcome.metrics
                    assignment.seconds = outcome.seconds
                    assignment.update = outcome.update.sha256 if isinstance(outcome, Trained) else None
        moments.reached("uploaded")
        self._announce([result.command])

    def _take_blob(self, result: Result) -> str | None:
        """Store a blob that travelled along; returns why the result cannot be taken, or None."""
        blob: Blob | None = None
        match result.outcome:
            case Trained(update=blob) | Answered(outputs=blob) | Exported(model=blob):
                pass
        if blob is None:
            return None
        try:
            data = blob.content()
            if data is not None:
                self._blobs.put(data)
            elif self._blobs.size(blob.sha256) != blob.size:
                return f"the upload {blob.sha256[:12]} should have {blob.size} bytes"
        except UmbelError as error:
            return str(error)
        return None

    def _announce(self, commands: Iterable[str]) -> None:
        with self._changed:
            self._settled.update(self._watched.intersection(commands))
            self._changed.notify_all()

    def _down(self, reason: str) -> None:
        log.warning("the broker is gone (%s): every device counts as offline until it is back", reason)
        self._devices.forget_presence()

    def _sweep(self) -> None:
        while not self._stopping.wait(SWEEP_SECONDS):
            try:
                with self._database.transaction() as session:
                    expired = self._outbox.expire(session)
                    for command in expired:
                        _move(session, command, "expired", command.reason)
                self._announce([command.id for command in expired])
                silent = self._outbox.silent(RESEND_SECONDS)
                self.send(silent)
                if silent:
                    self._outbox.touch([command.id for command in silent])
            except Exception:
                log.exception("the outbox could not be swept; trying again")


def _move(session: Session, command: Command, state: str, reason: str) -> Assignment | None:
    """Move the command's assignment, if it has a live one, to `state`."""
    query = select(Assignment).where(Assignment.command == command.id, Assignment.state.in_(LIVE))
    assignment = session.scalars(query).one_or_none()
    if assignment is not None:
        assignment.state, assignment.reason, assignment.updated = state, reason, command.updated
    return assignment


def outcome_of(command: Command) -> dict[str, Any]:
    """The outcome of a completed command; raises UmbelError when it has none."""
    if command.outcome is None:
        raise UmbelError(f"command {command.id} ended as {command.state}: {command.reason or 'without an outcome'}")
    return dict(command.outcome)
