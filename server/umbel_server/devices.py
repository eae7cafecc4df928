"""The fleet's register: who is enrolled, with which key, and what each device last said of itself."""

import hashlib
import hmac
import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from joserfc.jwk import ECKey
from sqlalchemy import select, update

from umbel import signing
from umbel.enrolment import EnrolmentRequest
from umbel.errors import SignatureError, UmbelError
from umbel.messages import Status
from umbel.signing import PublicKey
from umbel.topics import check_name
from umbel_server.database import Database, Device

log = logging.getLogger("umbel.devices")

KINDS = ("phone", "vehicle", "gateway")


class UnknownDevice(UmbelError):
    """A device that is not enrolled."""


class Devices:
    """The register in the database, with the keys of devices that spoke lately in memory."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._keys: dict[tuple[str, str], ECKey] = {}

    def enrol(self, request: EnrolmentRequest, secret: str) -> None:
        """Register a device by its key; the same device with the same key may enrol again.

        Raises SignatureError on a wrong secret or a known device with another key, MessageError on a bad name.
        """
        if not hmac.compare_digest(request.secret.encode(), secret.encode()):
            raise SignatureError("the enrolment token is not this server's; use the one that 'umbel init' printed")
        check_name(request.population, "a population")
        check_name(request.device, "a device id")
        if request.kind not in KINDS:
            raise UmbelError(f"a device's kind is one of {', '.join(KINDS)}; got {request.kind!r}")
        signing.import_public(request.key)
        key: dict[str, str] = msgspec.to_builtins(request.key)
        now = self._clock()
        with self._database.transaction() as session:
            device = session.get(Device, (request.population, request.device))
            if device is None:
                session.add(
                    Device(
                        population=request.population,
                        id=request.device,
                        node_id=node_id(request.population, request.device),
                        kind=request.kind,
                        key=key,
                        enrolled=now,
                        last_seen=now,
                    )
                )
            elif device.key != key:
                raise SignatureError(
                    f"device {request.device} of {request.population} is enrolled with another key; "
                    "give this device another id, or restore its state folder"
                )
            else:
                device.kind = request.kind
        log.info("enrolled %s/%s (%s)", request.population, request.device, request.kind)

    def key(self, population: str, device: str) -> ECKey:
        """The public key of an enrolled device; raises UnknownDevice."""
        if (known := self._keys.get((population, device))) is not None:
            return known
        with self._database.transaction() as session:
            row = session.get(Device, (population, device))
        if row is None:
            raise UnknownDevice(f"device {device} of population {population} is not enrolled here")
        key = signing.import_public(msgspec.convert(row.key, PublicKey))
        self._keys[population, device] = key
        return key

    def heard(self, status: Status) -> bool:
        """Take a status for true unless a newer session is known; returns whether it begins the device's session here.

        Of two sessions the higher epoch wins; within one, offline is final, so a late "online" revives nobody.
        """
        with self._database.transaction() as session:
            device = session.get(Device, (status.population, status.device))
            if device is None:
                raise UnknownDevice(f"device {status.device} of population {status.population} is not enrolled here")
            if status.epoch < device.epoch or (status.epoch == device.epoch and status.online and not device.online):
                return False
            began = status.online and (status.epoch, True) != (device.epoch, device.online)
            device.epoch, device.online, device.last_seen = status.epoch, status.online, self._clock()
            if status.online:
                device.trainer, device.agent, device.runtime = status.trainer, status.agent, status.runtime
                device.examples, device.rss_mb = status.examples, status.rss_mb
                device.installed, device.labels, device.reasons = status.installed, status.labels, status.reasons
            return began

    def readmit(self, population: str, device: str) -> Device:
        """End a device's quarantine and count its rejections from 0 again; raises UnknownDevice."""
        self.get(population, device)
        with self._database.transaction() as session:
            row = session.get_one(Device, (population, device))
            row.quarantined, row.rejections = "", 0
        return row

    def forget_presence(self) -> None:
        """Count every device as offline in its session until it says otherwise, as after a server's restart."""
        with self._database.transaction() as session:
            session.execute(update(Device).values(online=False, epoch=Device.epoch - 1).where(Device.online))

    def list(self, population: str | None = None) -> Sequence[Device]:
        """The devices of one population, or all, by name."""
        query = select(Device).order_by(Device.population, Device.id)
        if population is not None:
            query = query.where(Device.population == population)
        with self._database.transaction() as session:
            return session.scalars(query).all()

    def get(self, population: str, device: str) -> Device:
        """One device; raises UnknownDevice."""
        with self._database.transaction() as session:
            row = session.get(Device, (population, device))
        if row is None:
            raise UnknownDevice(
                f"device {device} of population {population} is not enrolled here; see 'umbel devices list'"
            )
        return row


def node_id(population: str, device: str) -> int:
    """A device's Flower node id: 62 bits of the SHA-256 of its name, never 0."""
    return int.from_bytes(hashlib.sha256(f"{population}/{device}".encode()).digest()[:8]) >> 2 or 1


def describe(device: Device) -> dict[str, Any]:
    """A device as the API shows it: no key, times in Unix seconds; without `reasons` it is eligible by its own rules."""
    return {
        "population": device.population,
        "id": device.id,
        "kind": device.kind,
        "online": device.online,
        "trainer": device.trainer,
        "runtime": device.runtime,
        "agent": device.agent,
        "examples": device.examples,
        "rss_mb": device.rss_mb,
        "installed": device.installed,
        "labels": device.labels,
        "reasons": device.reasons,
        "last_seen": device.last_seen,
        "enrolled": device.enrolled,
        "assigned": device.assigned,
        "rejections": device.rejections,
        "quarantined": device.quarantined,
        "epoch": device.epoch,
    }
