"""The server's side of MQTT: commands go out from the outbox; statuses, acknowledgements and results come in."""

import logging
import math
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec
from sqlalchemy.exc import DataError, OperationalError

from umbel import messages, sealing, topics
from umbel.errors import UmbelError
from umbel.messages import (
    Ack,
    Result,
    Standing,
    Status,
    blobs_of,
)
from umbel.mqtt import Link
from umbel_server import moments
from umbel_server.commands import kinds
from umbel_server.commands.assignment_transitions import Moved, move_assignment, reject, take
from umbel_server.commands.expected_outcome import check_outcome
from umbel_server.commands.outbox import Addressed, Outbox
from umbel_server.commands.received_blobs import ReceivedBlobs
from umbel_server.devices.register import ACTIVE, Devices, Known
from umbel_server.limits.rates import STRANGERS, MessageLimits
from umbel_server.storage.database import Database

log = logging.getLogger("umbel.exchange")

SWEEP_SECONDS = 1.0
RESEND_SECONDS = 10.0
CLIENT_ID = "umbel-server"
UNFINISHED_SECONDS = 60.0
"""How long an accepted command may be silent before it is sent again: its result may have been lost."""

MOST_WAITING = 10_000
"""Messages kept for later while the database cannot be written; beyond that a command's repeat brings them back."""

TOLD_SECONDS = 5.0
"""A barred device that comes back again and again is told how it stands at most so often."""

STALL_SECONDS, QUIET_SECONDS, CATCH_UP_SECONDS = 0.5, 0.3, 5.0

Listener = Callable[[Moved | None], None]


class Exchange:
    """Publishes commands and takes in what devices say, each message verified with its device's key.

    Who listens for a run is told, in the link's thread, of every transition that a device makes, after its transaction.
    """

    def __init__(
        self,
        database: Database,
        devices: Devices,
        outbox: Outbox,
        received_blobs: ReceivedBlobs,
        limits: MessageLimits,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        unseal: Callable[[bytes], bytes],
        clock: Callable[[], float],
    ) -> None:
        self._unseal, self._clock = unseal, clock
        self._database, self._devices, self._outbox = database, devices, outbox
        self._received_blobs = received_blobs
        self._limits = limits
        self._link = Link(
            host,
            port,
            CLIENT_ID,
            tuple(topics.everyone(channel) for channel in ("status", "ack", "result")),
            self._received,
            on_down=self._down,
            tls=tls,
        )
        self._again: deque[tuple[str, bytes]] = deque(maxlen=MOST_WAITING)
        self._busy, self._handled, self._stalled = False, -math.inf, -math.inf
        self._told: dict[tuple[str, str], float] = {}
        """Until when (monotonic) a barred device, a message of which was dropped, is told nothing again."""
        self._listeners: dict[str, tuple[str, Listener]] = {}
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
            token = command.token
            if command.sealed:
                key = self._devices.agreement(command.population, command.device)
                if key is None:
                    log.warning(
                        "command %s waits: %s/%s has told no key to seal it with, and it may not leave in the clear",
                        *(command.id, command.population, command.device),
                    )
                    continue
                token = sealing.seal(token, key)
            self._link.publish(topics.topic(command.population, command.device, "command"), token)

    def listen(self, run: str, population: str, listener: Listener) -> None:
        """Tell `listener` of the run's assignments that devices move on, and (None) when the population's presence changes."""
        self._listeners[run] = (population, listener)

    def unlisten(self, run: str) -> None:
        """Tell nobody of this run any more."""
        self._listeners.pop(run, None)

    def tell(self, population: str, device: str, moved: Iterable[Moved]) -> None:
        """Tell those who listen that an administrator changed a device, and ended assignments, in a transaction before."""
        self._told.pop((population, device), None)
        for assignment in moved:
            self._tell(assignment)
        self._tell_presence(population)

    def clear_status(self, population: str, device: str) -> None:
        """Let the broker forget the retained status of a device that is gone."""
        self._link.publish(topics.topic(population, device, "status"), b"", retain=True)

    def catch_up(self) -> None:
        """After the database was slow or locked: wait, at most CATCH_UP_SECONDS, until what had come meanwhile is taken in."""
        until = time.monotonic() + CATCH_UP_SECONDS
        while (now := time.monotonic()) < until:
            behind = self._busy or bool(self._again)
            lately = behind or now - self._stalled < CATCH_UP_SECONDS
            if not lately or (not behind and now - self._handled > QUIET_SECONDS):
                return
            self._stopping.wait(QUIET_SECONDS / 10)

    def _received(self, topic: str, payload: bytes) -> None:
        began = time.monotonic()
        self._busy = True
        try:
            self._take_in(topic, payload)
        except OperationalError as error:
            log.warning("a message on %s waits for the database: %s", topic, str(error).splitlines()[0])
            self._again.append((topic, payload))
        finally:
            self._busy = False
            self._handled = time.monotonic()
            if self._again or self._handled - began > STALL_SECONDS:
                self._stalled = self._handled

    def _take_in(self, topic: str, payload: bytes) -> None:
        name = STRANGERS
        try:
            address = topics.parse(topic)
            if not payload:
                return  # a retained message was cleared
            of = f"{address.population}/{address.device}"
            if not self._limits.admit(of, self._devices.may_be_known(address.population, address.device)):
                return
            known = self._devices.known(address.population, address.device)
            name = of
            key = known.key
            if sealing.is_sealed(payload):
                payload = self._unseal(payload)
            message: Status | Ack | Result
            if address.channel == "status":
                message = messages.decode(payload, Status, key)
            elif address.channel == "ack":
                message = messages.decode(payload, Ack, key)
            else:
                message = messages.decode(payload, Result, key)
            if (message.population, message.device) != (address.population, address.device):
                raise UmbelError(f"it speaks for {message.population}/{message.device}")
            messages.check_current(message, now := self._clock())
        except UmbelError as error:
            self._limits.forged(name, f"on {topic}: {error}")
            return
        self._limits.signed(name)
        if known.state != ACTIVE:
            self._drop(known, address.channel)
            return
        self._devices.clocks.signed_at(message.population, message.device, message.at - now)
        try:
            self._act_on(message)
        except DataError:
            self._limits.forged(name, f"on {topic}: it holds what the database does not take")

    def _act_on(self, message: Status | Ack | Result) -> None:
        """Do what a message says that its device signed; raises DataError when the database does not take it."""
        if isinstance(message, Status):
            began = self._devices.heard(message)
            self._tell_presence(message.population)
            if began:
                self._send_waiting(message.population, message.device)
        elif isinstance(message, Ack):
            self._acknowledged(message)
        else:
            self._completed(message)

    def _drop(self, known: Known, channel: topics.Channel) -> None:
        """Take nothing in of a barred device, and say so once; one that comes back is told how it stands."""
        now, name = time.monotonic(), (known.population, known.device)
        if name not in self._told:
            log.warning("dropped a message of %s/%s, and will drop all others: it is %s", *name, known.state)
            self._told[name] = -math.inf
        if channel != "status" or now < self._told[name]:
            return
        self._told[name] = now + TOLD_SECONDS
        standing = msgspec.convert({"type": "standing", "state": known.state, "reason": known.reason}, Standing)
        self.send([self._outbox.notice(*name, standing)])

    def _tell_presence(self, population: str | None) -> None:
        for of, listener in list(self._listeners.values()):
            if population in (None, of):
                listener(None)

    def _tell(self, moved: Moved | None) -> None:
        if moved is not None and (listening := self._listeners.get(moved.run)) is not None:
            listening[1](moved)

    def _send_waiting(self, population: str, device: str) -> None:
        waiting = self._outbox.waiting(population, device)
        self.send(waiting)
        if waiting:
            self._outbox.touch([command.id for command in waiting])

    def _acknowledged(self, ack: Ack, ours: bool = False) -> None:
        """Note what became of a command; `ours` when it is this server that rejects what came."""
        now = self._clock()
        with self._database.transaction() as session:
            if not self._outbox.acknowledge(session, ack):
                return
            if ours:
                moved = reject(session, ack.command, ack.reason, now)
            elif ack.state == "done":
                nothing = "it was acknowledged as done, and nothing came of it"
                moved = move_assignment(session, ack.command, "failed", nothing, now)
            else:
                moved = move_assignment(session, ack.command, ack.state, ack.reason, now)
        if ack.state == "accepted":
            moments.reached("accepted")
        self._tell(moved)
        self._received_blobs.remove_soon([ack.command])

    def _completed(self, result: Result) -> None:
        with self._database.transaction() as session:
            kind = self._outbox.open(session, result.command, result.population, result.device)
        if kind is None:
            return  # nothing is stored for a command that is over, or another's
        if reason := self._take_blob(kind, result):
            self._acknowledged(
                Ack(
                    result.command,
                    result.population,
                    result.device,
                    "rejected",
                    result.at,
                    reason,
                    sequence=result.sequence,
                ),
                True,
            )
            return
        moved = None
        with self._database.transaction() as session:
            if self._outbox.complete(session, result):
                moved = take(session, result.command, result.outcome, self._clock())
                if (upload := kinds.named(kind).upload) is not None and upload.is_published:
                    self._received_blobs.ownership.claim(session, result.population, *blobs_of(result.outcome))
        self._received_blobs.stop_counting(result.command)
        self._tell(moved)
        self._received_blobs.remove_soon([result.command])

    def _take_blob(self, name: str, result: Result) -> str:
        """Store a blob that travelled along; returns why the result cannot be taken, or nothing."""
        try:
            kind = kinds.named(name)
            check_outcome(kind, result.outcome)
            for blob in blobs_of(result.outcome):
                data = blob.content()
                if data is not None:
                    self._received_blobs.of(result.command).put(data)
                elif (
                    self._received_blobs.find(result.population, result.command, blob.sha256).size(blob.sha256)
                    != blob.size
                ):
                    return f"the upload {blob.sha256[:12]} should have {blob.size} bytes"
                if kind.upload is not None and kind.upload.is_published:
                    self._received_blobs.publish(result.population, result.command, blob.sha256)
        except UmbelError as error:
            return str(error)
        return ""

    def _down(self, reason: str) -> None:
        log.warning("the broker is gone (%s): every device counts as offline until it is back", reason)
        self._devices.forget_presence()
        self._tell_presence(None)

    def _sweep(self) -> None:
        while not self._stopping.wait(SWEEP_SECONDS):
            try:
                for _ in range(len(self._again)):
                    self._received(*self._again.popleft())
                with self._database.transaction() as session:
                    expired = self._outbox.expire(session)
                    moved = [
                        move_assignment(session, command.id, "expired", command.reason, command.updated)
                        for command in expired
                    ]
                for assignment in moved:
                    self._tell(assignment)
                self._received_blobs.remove_soon([command.id for command in expired])
                silent = self._outbox.silent(RESEND_SECONDS, UNFINISHED_SECONDS)
                self.send(silent)
                if silent:
                    self._outbox.touch([command.id for command in silent])
            except Exception:
                log.exception("the outbox could not be swept; trying again")
