"""The register of devices: each enrolled device's key, its state, and the last status that it sent."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec
from joserfc.jwk import ECKey
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from umbel import signing
from umbel.enrolment import EnrolmentRequest
from umbel.errors import SignatureError, UmbelError
from umbel.messages import Status
from umbel.signing import PublicKey
from umbel.topics import check_name
from umbel_server import answers
from umbel_server.devices.clocks import Clocks
from umbel_server.devices.twins import TWIN, Twins
from umbel_server.storage.database import Database, Device, RefusedKey

KINDS = ("phone", "vehicle", "gateway")


ACTIVE, SUSPENDED, REVOKED, DELETED = "active", "suspended", "revoked", "deleted"
_MEANS = {
    SUSPENDED: "wait until an administrator resumes it",
    REVOKED: "that is for good",
    DELETED: "ask for a new invitation",
}


class UnknownDevice(UmbelError):
    """The device is not enrolled."""


class Barred(UmbelError):
    """The device is suspended, revoked or deleted; `state` says which."""

    def __init__(self, population: str, device: str, state: str, reason: str) -> None:
        why = f" ({reason})" if reason else ""
        super().__init__(f"device {device} of {population} is {state}{why}: {_MEANS[state]}")
        self.state = state


@dataclass(frozen=True)
class Known:
    """An enrolled device: its public key and its state."""

    population: str
    device: str
    key: ECKey
    state: str
    reason: str

    def check(self) -> None:
        """Raise Barred unless the device is active."""
        if self.state != ACTIVE:
            raise Barred(self.population, self.device, self.state, self.reason)


class Heard(Enum):
    """What follows from a status."""

    BEGAN = "the device came online"
    GOES_ON = "the device is online, as before"
    LEFT = "the device itself went offline"
    DOUBTFUL = "the device counts as offline, and may be there: ask it"
    IGNORED = "nothing: the status is old"


@dataclass
class _Session:
    """A session of a device that is online: its newest status's sequence, and what that says of the device."""

    epoch: int
    sequence: int
    details: tuple[Any, ...]


class Devices:
    """The register in the database. Memory holds the names of all devices, and the keys and states of those in use.

    `may_enrol(session, population)` raises, within the transaction of an enrolment, when the population may have no
    further device. The id of a deleted device stays reserved for its key for `kept` seconds: for that long a broker may
    still accept the certificate of the deleted device.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        may_enrol: Callable[[Session, str], None] = lambda session, population: None,
        kept: float = 0.0,
    ) -> None:
        self._database = database
        self._clock = clock
        self._may_enrol, self._kept = may_enrol, kept
        self.clocks, self.twins = Clocks(database), Twins(clock)
        self._agreements: dict[tuple[str, str], ECKey | None] = {}
        self._known: dict[tuple[str, str], Known] = {}
        self._sessions: dict[tuple[str, str], _Session] = {}
        """The sessions of devices that are online."""
        self._alive: dict[tuple[str, str], float] = {}
        """Signs of life, in Unix seconds, that are not in the database yet."""
        self._changes = 0
        self._lock = threading.Lock()
        with database.transaction() as session:
            named = session.execute(select(Device.population, Device.id).where(Device.state != DELETED))
            self._names = {(population, device) for population, device in named}

    def register(
        self, session: Session, population: str, request: EnrolmentRequest, labels: dict[str, str], invited: bool
    ) -> bool:
        """Register a device with its key, within the caller's transaction; the same device with the same key may enrol again.

        Returns whether the register changed. `labels` were set by an administrator. Raises SignatureError when the device
        is registered with another key, or another device with this key; Barred when the device or its key is barred (the
        key of a deleted device may enrol again when it was `invited`); MessageError on a bad name.
        """
        check_name(request.device, "a device id")
        if request.kind not in KINDS:
            got = (
                f"got {request.kind[:64]!r}"
                if request.kind
                else "neither the device nor its invitation names one; add --kind"
            )
            raise UmbelError(f"a device's kind is one of {', '.join(KINDS)}; {got}")
        self._check_free(session, population, request)
        key: dict[str, str] = msgspec.to_builtins(request.key)
        fingerprint = signing.fingerprint(signing.import_public(request.key))
        self._admit(session, fingerprint, invited)
        now = self._clock()
        device = session.get(Device, (population, request.device), with_for_update=True)
        if device is None or device.state == DELETED:
            if session.scalar(select(Device.id).where(Device.fingerprint == fingerprint)) is not None:
                raise SignatureError(
                    "another device is enrolled with this key; give each device a state folder of its own, and copy none"
                )
            self._may_enrol(session, population)
            if device is None:
                device = Device(
                    population=population, id=request.device, node_id=node_id(population, request.device), labels={}
                )
                session.add(device)
            device.key, device.fingerprint = key, fingerprint
            device.kind, device.enrolled, device.last_seen = request.kind, now, now
            device.state, device.state_reason, device.state_since = ACTIVE, "", now
            device.epoch, device.online, device.set_labels = 0, False, labels
            device.said_epoch = device.said_sequence = device.answered = 0
            device.agreement = None
            return True
        if device.key != key:
            raise SignatureError(
                f"device {request.device} of {population} is enrolled with another key; "
                "give this device another id, or restore its state folder"
            )
        if device.state != ACTIVE:
            raise Barred(population, device.id, device.state, device.state_reason)
        before, told = (device.kind, device.set_labels), (request.kind, {**device.set_labels, **labels})
        device.kind, device.set_labels = told
        return before != told

    def _check_free(self, session: Session, population: str, request: EnrolmentRequest) -> None:
        before = session.get(Device, (population, request.device))
        if before is None or before.state != DELETED or self._clock() >= before.state_since + self._kept:
            return
        if before.key != msgspec.to_builtins(request.key):
            raise SignatureError(
                f"a device {request.device} of {population} was deleted less than {self._kept / 86_400:.0f} days ago, and a "
                "broker may take its certificate for this one's; give this device another id"
            )

    def _admit(self, session: Session, fingerprint: str, invited: bool) -> None:
        refused = session.get(RefusedKey, fingerprint)
        if refused is None:
            return
        if refused.state != DELETED or not invited:
            raise Barred(refused.population, refused.device, refused.state, "")
        session.delete(refused)

    def known(self, population: str, device: str) -> Known:
        """The key and the state of an enrolled device; raises UnknownDevice."""
        if (known := self._known.get((population, device))) is not None:
            return known
        before = self._changes
        with self._database.transaction() as session:
            row = session.get(Device, (population, device))
        if row is None or row.state == DELETED:
            self._names.discard((population, device))
            raise UnknownDevice(f"device {device} of population {population} is not enrolled here")
        known = Known(population, device, key_of(row), row.state, row.state_reason)
        with self._lock:
            if before == self._changes:  # else what was read may be what was just changed
                self._known[population, device] = known
        return known

    def remembered(self, population: str, device: str) -> Known | None:
        """As `known`, but None when the answer would need the database."""
        return self._known.get((population, device))

    def may_be_known(self, population: str, device: str) -> bool:
        """Whether the register may hold a device, answered from memory; True once more after the device was deleted."""
        return (population, device) in self._names

    def agreement(self, population: str, device: str) -> ECKey | None:
        """The key that encrypts commands for the device's running agent, or None when the device sent no usable key."""
        name = population, device
        if name not in self._agreements:
            with self._database.transaction() as session:
                told = session.scalar(
                    select(Device.agreement).where(Device.population == population, Device.id == device)
                )
            return self._agreements.setdefault(name, _usable(msgspec.convert(told, PublicKey) if told else None))
        return self._agreements[name]

    def forget(self, population: str, device: str) -> None:
        """Drop what memory holds of a device, because its key or state has just changed in the database."""
        with self._lock:
            self._changes += 1
            self._names.add((population, device))
            self._known.pop((population, device), None)
            self._sessions.pop((population, device), None)
            self._agreements.pop((population, device), None)

    def key(self, population: str, device: str) -> ECKey:
        """The public key of an active device; raises UnknownDevice or Barred."""
        known = self.known(population, device)
        known.check()
        return known.key

    def heard(self, status: Status, proven: bool = False) -> Heard:
        """Record a status, and return what follows from it; `proven`: it answers a question that was just asked.

        Of two sessions the one with the higher epoch counts. Within a session an "online" after an "offline" counts only
        when it is proven, so that a late "online" does not bring a device back; nor does a repeated one. A device that
        answers is online, whatever was said before. What an older status says of the device is not recorded.
        """
        name = status.population, status.device
        if status.online:
            status = self._with_twin(status)
        if status.online and not proven and self._goes_on(name, status):
            return Heard.GOES_ON
        with self._database.transaction() as session:
            device = session.get(Device, name)
            if device is None:
                raise UnknownDevice(f"device {status.device} of population {status.population} is not enrolled here")
            if device.state != ACTIVE:
                return Heard.IGNORED  # the device was barred after its key was read
            newest = self._newest(name, device)
            if not status.online:
                return self._heard_offline(device, status, newest)
            said = status.epoch, status.sequence
            if said >= newest:
                device.said_epoch, device.said_sequence = said
                _note_details(device, status)
            is_new = said > newest or status.sequence == 0
            ended = status.epoch == device.epoch and not device.online
            if not proven and (status.epoch < device.epoch or not is_new or ended):
                return Heard.IGNORED if device.online else Heard.DOUBTFUL
            began = not device.online or status.epoch > device.epoch
            device.epoch, device.online = max(device.epoch, status.epoch), True
            device.last_seen = self._clock()
        if said >= newest:
            self._sessions[name] = _Session(status.epoch, status.sequence, _details(status))
            self._agreements[name] = _usable(status.agreement)
            self.clocks.measured(*name, status.skew)
        return Heard.BEGAN if began else Heard.GOES_ON

    def _with_twin(self, status: Status) -> Status:
        """The status with a reason to give the device no work when two devices use its identity."""
        self.twins.hear(status)
        if not self.twins.named(status.population, status.device):
            return status
        return msgspec.structs.replace(status, reasons=[*status.reasons, TWIN])

    def _newest(self, name: tuple[str, str], device: Device) -> tuple[int, int]:
        """Epoch and sequence of the newest status that said online."""
        kept = device.said_epoch, device.said_sequence
        session = self._sessions.get(name)
        return kept if session is None else max(kept, (session.epoch, session.sequence))

    def _goes_on(self, name: tuple[str, str], status: Status) -> bool:
        """Whether a status says only that a session goes on; that is kept in memory until `write_heard`."""
        session = self._sessions.get(name)
        if session is None or status.epoch != session.epoch or status.sequence <= session.sequence:
            return False
        if _details(status) != session.details:
            return False
        session.sequence = status.sequence
        self.clocks.measured(*name, status.skew)
        self.alive(*name)
        return True

    def _heard_offline(self, device: Device, status: Status, newest: tuple[int, int]) -> Heard:
        if status.epoch < device.epoch:
            return Heard.IGNORED
        was, device.epoch, device.online = device.online, status.epoch, False
        self._sessions.pop((status.population, status.device), None)
        if status.epoch == newest[0] and status.sequence > newest[1]:
            device.last_seen = self._clock()
            return Heard.LEFT
        device.said_epoch, device.said_sequence = newest  # which may have been in memory alone
        return Heard.DOUBTFUL if was or status.epoch > newest[0] else Heard.IGNORED

    def alive(self, population: str, device: str) -> None:
        """Note a sign of life; `write_heard` writes it to the register."""
        self._alive[population, device] = self._clock()

    def answered(self, population: str, device: str) -> bool:
        """Count a device as online that answered a question without a status; returns whether it was offline."""
        with self._database.transaction() as session:
            row = session.get(Device, (population, device))
            if row is None or row.state != ACTIVE:
                return False
            began, row.online, row.last_seen = not row.online, True, self._clock()
        return began

    def gone(self, devices: Sequence[tuple[str, str]]) -> None:
        """Count devices as offline that did not answer."""
        with self._database.transaction() as session:
            for name in devices:
                row = session.get(Device, name)
                if row is not None and row.online:
                    row.online = False
                    row.said_epoch, row.said_sequence = self._newest(name, row)
        for name in devices:
            self._sessions.pop(name, None)

    def write_heard(self) -> None:
        """Write the signs of life since the last call to the register."""
        alive, self._alive = self._alive, {}
        if not alive:
            return
        with self._database.transaction() as session:
            for (population, device), at in alive.items():
                known = self._sessions.get((population, device))
                row = session.get(Device, (population, device))
                if row is None or row.state != ACTIVE:
                    continue
                row.last_seen = max(row.last_seen, at)
                if known is not None and known.epoch == row.said_epoch:
                    row.said_sequence = max(row.said_sequence, known.sequence)

    def active(self) -> Sequence[tuple[str, str]]:
        """The names of all active devices, those heard lately first."""
        query = select(Device.population, Device.id).where(Device.state == ACTIVE).order_by(Device.last_seen.desc())
        with self._database.transaction() as session:
            return [(population, device) for population, device in session.execute(query)]

    def readmit(self, population: str, device: str) -> Device:
        """End a device's quarantine and count its rejections from 0 again; raises UnknownDevice."""
        self.get(population, device)
        with self._database.transaction() as session:
            row = session.get_one(Device, (population, device))
            row.quarantined, row.rejections = "", 0
        return row

    def forget_presence(self) -> None:
        """Count every device as offline until it sends a status again, as after a restart of the server."""
        with self._database.transaction() as session:
            session.execute(update(Device).values(online=False, epoch=Device.epoch - 1).where(Device.online))
        self._sessions.clear()

    def list(self, population: str | None = None) -> Sequence[Device]:
        """The devices of one population, or of all populations, sorted by name."""
        query = select(Device).where(Device.state != DELETED).order_by(Device.population, Device.id)
        if population is not None:
            query = query.where(Device.population == population)
        with self._database.transaction() as session:
            return session.scalars(query).all()

    def get(self, population: str, device: str) -> Device:
        """One device; raises UnknownDevice."""
        with self._database.transaction() as session:
            return self.row(session, population, device, hold=False)

    def row(self, session: Session, population: str, device: str, hold: bool = True) -> Device:
        """One device within the caller's transaction; `hold` locks its row. Raises UnknownDevice."""
        row = session.get(Device, (population, device), with_for_update=hold)
        if row is None or row.state == DELETED:
            raise UnknownDevice(
                f"device {device} of population {population} is not enrolled here; see 'umbel devices list'"
            )
        return row


def key_of(device: Device) -> ECKey:
    """A device's public key; raises SignatureError when the register holds no valid key."""
    try:
        return signing.import_public(msgspec.convert(device.key, PublicKey))
    except (SignatureError, msgspec.ValidationError) as error:
        raise SignatureError(
            f"the register holds no key of device {device.id} of population {device.population} ({error}): "
            "restore the database from a backup, or delete the device and invite it anew"
        ) from error


def _details(status: Status) -> tuple[Any, ...]:
    """What a status says of the device that is worth a transaction when it changes."""
    said = status.trainer, status.agent, status.runtime, status.examples, status.installed
    return *said, status.labels, status.reasons, status.agreement


def _note_details(device: Device, status: Status) -> None:
    device.trainer, device.agent, device.runtime = status.trainer, status.agent, status.runtime
    device.examples, device.rss_mb = status.examples, status.rss_mb
    device.installed, device.labels, device.reasons = status.installed, status.labels, status.reasons
    device.agreement = msgspec.to_builtins(status.agreement)


def _usable(told: PublicKey | None) -> ECKey | None:
    try:
        return None if told is None else signing.import_public(told)
    except SignatureError:
        return None


def node_id(population: str, device: str) -> int:
    """A device's Flower node id: 62 bits of the SHA-256 of its name, never 0."""
    return int.from_bytes(hashlib.sha256(f"{population}/{device}".encode()).digest()[:8]) >> 2 or 1


def labels_of(device: Device) -> dict[str, str]:
    """A device's labels: its own, overridden by those that an administrator set."""
    return {**device.labels, **device.set_labels}


def describe(device: Device) -> answers.Device:
    """A device as the API shows it: without its key, times in Unix seconds.

    A device without `reasons` meets its own conditions. `labels` are the effective labels, `set_labels` those among them
    that an administrator set.
    """
    return answers.Device(
        population=device.population,
        id=device.id,
        kind=device.kind,
        online=device.online,
        trainer=device.trainer,
        runtime=device.runtime,
        agent=device.agent,
        examples=device.examples,
        rss_mb=device.rss_mb,
        installed=device.installed,
        name=device.name,
        labels=labels_of(device),
        set_labels=device.set_labels,
        state=device.state,
        state_reason=device.state_reason,
        state_since=device.state_since,
        reasons=device.reasons,
        last_seen=device.last_seen,
        skew=device.skew,
        enrolled=device.enrolled,
        assigned=device.assigned,
        rejections=device.rejections,
        quarantined=device.quarantined,
        epoch=device.epoch,
    )
