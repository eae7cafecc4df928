"""Invitations: each lets one device enrol once, before it expires."""

import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from umbel.enrolment import SECRET_BYTES, EnrolmentRequest, make_secret
from umbel.errors import SignatureError, UmbelError
from umbel.sizes import check_labels
from umbel.topics import check_name
from umbel_server import answers
from umbel_server.devices.register import KINDS, Barred, Devices
from umbel_server.storage.database import Database, Device, Invitation

log = logging.getLogger("umbel.devices")

MOST_AT_ONCE = 1000
SHORTEST, LONGEST = 1.0, 366 * 86_400.0
"""The shortest and longest time, in seconds, for which an invitation may be open."""


@dataclass(frozen=True)
class Invited:
    """A new invitation and its secret. The secret is not stored: only its hash is."""

    invitation: Invitation
    secret: str


@dataclass(frozen=True)
class Enrolled:
    """The names under which a device is registered; `changed` says whether this enrolment changed the register."""

    population: str
    device: str
    kind: str
    changed: bool


class UnknownInvitation(UmbelError):
    """No invitation has this id."""

    def __init__(self, id: str) -> None:
        super().__init__(f"there is no invitation {id[:64]!r}; see 'umbel devices invitations'")


class Invitations:
    """The invitations in the database, and the enrolment of devices.

    `open_secret`, unless empty, enrols any number of devices into any population. `random(n)` returns n random bytes.
    """

    def __init__(
        self,
        database: Database,
        devices: Devices,
        clock: Callable[[], float],
        open_secret: str = "",
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._database, self._devices, self._clock = database, devices, clock
        self._open_secret, self._random = open_secret, random

    def invite(self, population: str, count: int, ttl: float, labels: dict[str, str], kind: str = "") -> list[Invited]:
        """Make `count` invitations that expire in `ttl` seconds; raises UmbelError when an argument is out of range."""
        check_name(population, "a population")
        check_labels(labels, "labels")
        if not 1 <= count <= MOST_AT_ONCE:
            raise UmbelError(f"1 to {MOST_AT_ONCE} invitations can be made at once, got {count}")
        if not SHORTEST <= ttl <= LONGEST:
            raise UmbelError(f"an invitation is open for 1 second to 366 days, got {ttl:g} seconds")
        if kind not in ("", *KINDS):
            raise UmbelError(f"a device's kind is one of {', '.join(KINDS)}; got {kind!r}")
        now, made = self._clock(), []
        for _ in range(count):
            secret = make_secret(self._random(SECRET_BYTES))
            row = Invitation(
                id=self._random(6).hex(),
                population=population,
                secret=_hashed(secret),
                labels=labels,
                kind=kind,
                created=now,
                expires=now + ttl,
                used=0.0,
                device="",
                revoked=0.0,
            )
            made.append(Invited(row, secret))
        with self._database.transaction() as session:
            session.add_all([one.invitation for one in made])
        log.info("made %d invitations into %s", count, population)
        return made

    def list(self) -> Sequence[Invitation]:
        """Every invitation, newest first."""
        with self._database.transaction() as session:
            return session.scalars(select(Invitation).order_by(Invitation.created.desc(), Invitation.id)).all()

    def get(self, id: str) -> Invitation:
        """One invitation; raises UnknownInvitation."""
        with self._database.transaction() as session:
            row = session.get(Invitation, id)
        if row is None:
            raise UnknownInvitation(id)
        return row

    def revoke(self, id: str) -> Invitation:
        """Revoke an invitation; raises UmbelError when no invitation has that id, or a device has used it."""
        with self._database.transaction() as session:
            row = session.get(Invitation, id, with_for_update=True)
            if row is None:
                raise UnknownInvitation(id)
            if row.used:
                raise UmbelError(
                    f"invitation {id} was used by {row.device} already; "
                    f"'umbel devices revoke {row.device} -p {row.population}' bars that device"
                )
            row.revoked = row.revoked or self._clock()
        return row

    def state(self, invitation: Invitation) -> Literal["open", "used", "expired", "revoked"]:
        """The state of an invitation now."""
        if invitation.used:
            return "used"
        if invitation.revoked:
            return "revoked"
        return "open" if self._clock() < invitation.expires else "expired"

    def describe(self, invitation: Invitation) -> answers.Invitation:
        """An invitation as the API shows it: without its secret, times in Unix seconds."""
        return answers.Invitation(
            id=invitation.id,
            population=invitation.population,
            labels=invitation.labels,
            kind=invitation.kind,
            state=self.state(invitation),
            created=invitation.created,
            expires=invitation.expires,
            used=invitation.used,
            device=invitation.device,
        )

    def enrol(self, request: EnrolmentRequest) -> Enrolled:
        """Register a device and mark its invitation as used, in one transaction.

        The same device with the same key may repeat its request, because the first answer may have been lost. Raises
        SignatureError when the secret is not valid, Barred when the device is barred, UmbelError on a bad request.
        """
        try:
            enrolled = self._enrol(request)
        except IntegrityError:  # another request registered the same device between our read and our write
            enrolled = self._enrol(request)
        self._devices.forget(enrolled.population, enrolled.device)
        if enrolled.changed:
            log.info("enrolled %s/%s (%s)", enrolled.population, enrolled.device, enrolled.kind)
        return enrolled

    def _enrol(self, request: EnrolmentRequest) -> Enrolled:
        with self._database.transaction() as session:
            if self._open_secret and hmac.compare_digest(request.secret.encode(), self._open_secret.encode()):
                check_name(request.population, "a population")
                changed = self._devices.register(session, request.population, request, {}, invited=False)
                return Enrolled(request.population, request.device, request.kind, changed)
            query = select(Invitation).where(Invitation.secret == _hashed(request.secret)).with_for_update()
            row = session.scalars(query).one_or_none()
            if row is None:
                raise SignatureError(
                    "the enrolment token is not this server's, or it takes no reusable one any more; "
                    "ask for one made with 'umbel devices invite'"
                )
            wanted = _fitting(row, request)
            if row.used:
                return self._again(session, row, wanted)
            if (state := self.state(row)) != "open":
                raise SignatureError(f"the invitation is {state}; ask for a new one, made with 'umbel devices invite'")
            self._devices.register(session, row.population, wanted, row.labels, invited=True)
            row.used, row.device = self._clock(), request.device
            return Enrolled(row.population, wanted.device, wanted.kind, True)

    def _again(self, session: Session, row: Invitation, request: EnrolmentRequest) -> Enrolled:
        """Answer a repeated request: only the device that used the token gets the same answer again."""
        device = session.get(Device, (row.population, row.device))
        if device is None or row.device != request.device or device.key != msgspec.to_builtins(request.key):
            raise SignatureError("the token was used by another device; each is good once, ask for a new one")
        if device.state != "active":
            raise Barred(row.population, row.device, device.state, device.state_reason)
        return Enrolled(row.population, row.device, device.kind, False)


def _fitting(row: Invitation, request: EnrolmentRequest) -> EnrolmentRequest:
    """The request, completed from the invitation; raises SignatureError when the two contradict each other."""
    if request.population not in ("", row.population):
        raise SignatureError(
            f"the invitation is into population {row.population}, the device asks for {request.population[:64]!r}; "
            "correct its configuration"
        )
    if row.kind and request.kind not in ("", row.kind):
        raise SignatureError(f"the invitation is for a {row.kind}, the device says that it is a {request.kind[:64]!r}")
    return msgspec.structs.replace(request, population=row.population, kind=row.kind or request.kind)


def _hashed(secret: str) -> str:
    # A fast hash is enough: nobody can guess 32 random bytes. Slow hashes protect passwords, which people choose.
    return hashlib.sha256(secret.encode()).hexdigest()
