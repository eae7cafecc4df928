"""Commands on their way: each stays here until it is acknowledged for good, or expires."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from joserfc.jwk import ECKey
from sqlalchemy import CursorResult, and_, bindparam, func, insert, or_, select, update
from sqlalchemy.orm import Session

from umbel import messages, signing
from umbel.errors import SignatureError, UmbelError
from umbel.messages import Ack, Body, Hello, Result, Standing, kind_of
from umbel.sequence import Ascending
from umbel.signing import public_key
from umbel_server import answers
from umbel_server.security.keyring import Keyring
from umbel_server.storage.database import COMMANDS, DEVICES, Command, Database

OPEN = ("pending", "accepted")
NOTICE_SECONDS = 300.0
"""Seconds until news expires; a device's clock may differ from the server's by as much."""
HELLO_SECONDS = 60.0
"""Seconds for which a device answers a Hello, by the server's time as it knows that."""


_ONE = select(*COMMANDS.c["population", "device", "kind", "state"]).where(COMMANDS.c.id == bindparam("of"))
_ADD = insert(COMMANDS)
_NOTE = update(COMMANDS).where(COMMANDS.c.id == bindparam("of"))
_ANSWER = _NOTE.where(COMMANDS.c.state.in_(OPEN))
_ANSWERED = update(DEVICES).where(
    DEVICES.c.population == bindparam("of_population"),
    DEVICES.c.id == bindparam("of_device"),
    DEVICES.c.answered < bindparam("before"),
)


class UnknownCommand(UmbelError):
    """A command that is not in the outbox."""


@dataclass(frozen=True)
class Addressed:
    """A signed command ready to be published; one that is to be `sealed` is, for the device as it is then, on its way out."""

    id: str
    population: str
    device: str
    token: bytes
    sealed: bool


class Outbox:
    """The outbox in the database.

    Commands to `encrypted` populations are sealed, and their answers are sealed for the `answer_key`.
    """

    def __init__(
        self,
        database: Database,
        keys: Keyring,
        clock: Callable[[], float],
        encrypted: frozenset[str],
        answer_key: Callable[[], ECKey],
    ) -> None:
        self._database, self._keys, self._clock = database, keys, clock
        self._encrypted, self._answer_key = encrypted, answer_key
        with database.transaction() as session:
            newest = session.scalar(select(func.max(Command.issued)))
        self.sequence = Ascending(clock, int((newest or 0.0) * 1e6))

    def add(
        self, session: Session, population: str, device: str, body: Body, ttl: float, sealed: bool = False
    ) -> Addressed:
        """Sign a command that expires in `ttl` seconds and put it into the outbox, within the caller's transaction."""
        return self.add_all(session, [(population, device, body, ttl)], sealed)[0]

    def add_all(
        self, session: Session, wanted: Sequence[tuple[str, str, Body, float]], sealed: bool = False
    ) -> list[Addressed]:
        """As `add`, for each population, device, body and time to live, in that order."""
        signed, rows = [], []
        for population, device, body, ttl in wanted:
            now = self._clock()  # each its own: they are repeated in the order of their issue
            command = self._sign(population, device, body, now, ttl, sealed)
            signed.append(command)
            rows.append(
                {
                    "id": command.id,
                    "population": population,
                    "device": device,
                    "kind": kind_of(body),
                    "token": command.token,
                    "sealed": command.sealed,
                    "issued": now,
                    "expires": now + ttl,
                    "updated": now,
                }
            )
        if rows:
            session.execute(_ADD, rows)
        return signed

    def notice(self, population: str, device: str, standing: Standing) -> Addressed:
        """Sign news that nobody waits to be acknowledged, so that no outbox holds it."""
        return self._sign(population, device, standing, self._clock(), NOTICE_SECONDS, sealed=False)

    def hello(self, population: str, device: str, hello: Hello) -> Addressed:
        """Sign a question whether a device is there; never sealed, as a device that began anew has another key."""
        return self._sign(population, device, hello, self._clock(), HELLO_SECONDS, sealed=False, may_seal=False)

    def _sign(
        self, population: str, device: str, body: Body, now: float, ttl: float, sealed: bool, may_seal: bool = True
    ) -> Addressed:
        sealed = may_seal and (sealed or population in self._encrypted)
        command = messages.Command(
            secrets.token_hex(8),
            population,
            device,
            now,
            now + ttl,
            body,
            public_key(self._answer_key()) if sealed else None,
            sequence=self.sequence.next(),
        )
        return Addressed(command.id, population, device, messages.encode(command, self._keys.current), sealed)

    def waiting(self, population: str, device: str) -> list[Addressed]:
        """The open commands of one device, oldest first."""
        return self._open(Command.population == population, Command.device == device)

    def silent(self, pending: float, accepted: float) -> list[Addressed]:
        """Commands that nobody has answered for `pending` seconds, or finished for `accepted`, oldest first.

        They, or what was said to them, may have been lost on the way; a device answers a repeat with its last word.
        """
        now = self._clock()
        return self._open(
            or_(
                and_(Command.state == "pending", Command.updated < now - pending),
                and_(Command.state == "accepted", Command.updated < now - accepted),
            )
        )

    def touch(self, ids: Sequence[str]) -> None:
        """Note that these commands, one at least, were sent just now."""
        now = self._clock()
        with self._database.transaction() as session:
            session.execute(_NOTE, [{"of": id, "updated": now} for id in ids])

    def _open(self, *where: Any) -> list[Addressed]:
        query = (
            select(Command.id, Command.population, Command.device, Command.token, Command.sealed)
            .where(Command.state.in_(OPEN), Command.expires > self._clock(), *where)
            .order_by(Command.issued)
        )
        with self._database.transaction() as session:
            return [Addressed(*row[:3], self._signed_now(row[3]), row[4]) for row in session.execute(query)]

    def _signed_now(self, token: bytes) -> bytes:
        """A command by the key that signs now: one by a key before it may have been retired since."""
        current = self._keys.current
        try:
            if signing.signer_of(token) == signing.fingerprint(current):
                return token
            return signing.sign_as("command", signing.verify_as("command", token, self._keys.lineage.all), current)
        except SignatureError:
            return token  # which somebody has put into the database: no device takes it

    def open(self, session: Session, id: str, population: str, device: str) -> str | None:
        """The kind of a command of a device that may still be answered, or None."""
        row = session.execute(_ONE, {"of": id}).one_or_none()
        if row is None or (row.population, row.device) != (population, device) or row.state not in OPEN:
            return None
        return str(row.kind)

    def acknowledge(self, session: Session, ack: Ack) -> str | None:
        """Note an acknowledgement; returns the command's kind, or None when it is not open, not that device's, or no news."""
        return self._note(session, ack, {})

    def complete(self, session: Session, result: Result) -> str | None:
        """Note an outcome; returns the command's kind, or None when it is not open or not that device's."""
        ack = Ack(result.command, result.population, result.device, "done", result.at, sequence=result.sequence)
        return self._note(session, ack, {"outcome": msgspec.to_builtins(result.outcome)})

    def _note(self, session: Session, ack: Ack, more: dict[str, Any]) -> str | None:
        row = session.execute(_ONE, {"of": ack.command}).one_or_none()
        if row is None or (row.population, row.device) != (ack.population, ack.device):
            return None
        if row.state not in OPEN or row.state == ack.state:
            return None
        if ack.state != "accepted":
            who = {"of_population": ack.population, "of_device": ack.device, "before": ack.sequence}
            session.execute(_ANSWERED, {**who, "answered": ack.sequence})
        note = {"state": ack.state, "reason": ack.reason, "updated": self._clock(), **more}
        noted = cast(CursorResult[Any], session.execute(_ANSWER, {"of": ack.command, **note}))
        return str(row.kind) if noted.rowcount == 1 else None  # an administrator closed it since

    def expire(self, session: Session) -> list[Command]:
        """Close every open command whose time is over; returns them."""
        query = select(Command).where(Command.state.in_(OPEN), Command.expires <= self._clock())
        commands = list(session.scalars(query.with_for_update(skip_locked=True)))  # one just answered is not late
        for command in commands:
            command.state, command.updated = "expired", self._clock()
            command.reason = "no final acknowledgement came before the command expired"
        session.flush()  # a command before its assignment, as where it is answered
        return commands

    def latest(self, population: str, device: str, count: int = 10) -> Sequence[Command]:
        """The newest commands of one device, newest first."""
        query = (
            select(Command)
            .where(Command.population == population, Command.device == device)
            .order_by(Command.issued.desc())
            .limit(count)
        )
        with self._database.transaction() as session:
            return session.scalars(query).all()

    def get(self, id: str, populations: Sequence[str] = ()) -> Command:
        """One command, of these `populations` where some are given; raises UnknownCommand when there is none."""
        with self._database.transaction() as session:
            command = session.get(Command, id)
        if command is None or (populations and command.population not in populations):
            raise UnknownCommand(f"no command {id!r} is known here")
        return command


def describe(command: Command) -> answers.Command:
    """A command as the API shows it; times in Unix seconds."""
    return answers.Command(
        id=command.id,
        population=command.population,
        device=command.device,
        kind=command.kind,
        state=command.state,
        reason=command.reason,
        issued=command.issued,
        expires=command.expires,
        updated=command.updated,
        outcome=command.outcome,
    )
