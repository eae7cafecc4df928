"""Administrators: each has a role, a set of populations, and a token that is shown once, when it is made."""

import base64
import hashlib
import hmac
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from umbel.errors import UmbelError
from umbel.topics import check_name
from umbel_server import answers
from umbel_server.limits.bucket import RateLimit
from umbel_server.limits.rates import network_of
from umbel_server.storage.database import Admin, Database

Role = Literal["viewer", "operator", "owner"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "owner")
"""Roles in ascending order: each role includes the rights of those before it."""

SHOWN = 5
"""The largest number of populations that a sentence names."""

LOCAL = "local"
RESERVED = (LOCAL, "server", "unknown")
"""Names that have another meaning in the audit log, and that no administrator may have."""

REMEMBERED_SECONDS, MOST_REMEMBERED = 60.0, 1024
"""How long a verified token is remembered, and how many are: a remembered token needs no argon2id."""
FAILURES, FAILURE_SECONDS = 5, 10.0
"""A burst of wrong secrets that one address may try, and the seconds to wait for each one after it."""
ALL_FAILURES, ALL_FAILURE_SECONDS = 50, 1.0
"""The same for one administrator's token, over all addresses that sent wrong ones: about 5% of one processor at most."""

_TOKEN = re.compile(r"umbel_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


class UnknownAdmin(UmbelError):
    """The administrator is not found, or not visible to the caller."""


class WrongToken(UmbelError):
    """The token is unknown, revoked or expired."""


class TooManyFailures(UmbelError):
    """Too many wrong tokens came; the next one is checked after `wait` seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__(f"too many wrong tokens came; try again in {wait:.0f} s")
        self.wait = wait


@dataclass(frozen=True)
class Identity:
    """The caller of a request: a name, a role, and the populations that the role covers (empty: all)."""

    name: str
    role: Role
    populations: tuple[str, ...] = ()

    def may(self, role: Role) -> bool:
        """Whether the caller has this role or a higher one."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def sees(self, population: str) -> bool:
        """Whether the caller may see a population."""
        return not self.populations or population in self.populations

    @property
    def scope(self) -> str:
        """The populations as words of a sentence."""
        more = len(self.populations) - SHOWN
        named = ", ".join(self.populations[:SHOWN]) or "all populations"
        return f"{named} and {more} more" if more > 0 else named

    def covers(self, populations: Sequence[str]) -> bool:
        """Whether the caller's populations include all `populations`, where none means all."""
        return not self.populations or (bool(populations) and set(populations) <= set(self.populations))


class Admins:
    """The administrators in the database. Memory holds the SHA-256 of recently verified tokens.

    Every request reads the administrator's row, so that a revoked or expired token fails at once. Memory only holds the
    fact that a secret matches a hash. argon2id (RFC 9106) runs for one request at a time.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._database, self._clock, self._random = database, clock, random_bytes
        # OWASP's smallest parameters for passwords are enough for a secret of 256 random bits.
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
        self._remembered: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self._turn, self._memory = threading.Lock(), threading.Lock()
        self._failures = RateLimit(FAILURES, FAILURE_SECONDS, clock)
        self._all_failures = RateLimit(ALL_FAILURES, ALL_FAILURE_SECONDS, clock)

    def add(
        self, by: Identity, name: str, role: Role, populations: Sequence[str], expires_in: float
    ) -> tuple[Admin, str]:
        """Make an administrator for `expires_in` seconds (0: for ever); returns the row and the token, which is not stored.

        Raises UmbelError when the name is taken, or when `by` does not cover all `populations`.
        """
        check_name(name, "an admin's name")
        if name in RESERVED:
            raise UmbelError(f"the name {name!r} means somebody else in the audit log; take another")
        scope = sorted({check_name(population, "a population") for population in populations})
        if not by.covers(scope):
            raise UmbelError(
                f"an owner for {by.scope} makes admins for some of these only; name them with --population"
            )
        now, id, secret = self._clock(), self._random(8).hex(), _text(self._random(32))
        row = Admin(
            id=id,
            name=name,
            role=role,
            populations=scope,
            secret=self._hasher.hash(secret, salt=self._random(16)),
            created=now,
            expires=now + expires_in if expires_in else 0.0,
        )
        try:
            with self._database.transaction() as session:
                before = session.scalars(select(Admin).where(Admin.name == name, Admin.revoked == 0)).one_or_none()
                if before is not None and before.expires and before.expires <= now:
                    before.revoked = now
                    session.flush()
                session.add(row)
        except IntegrityError as error:
            raise UmbelError(f"the name {name} is not free; take another, or revoke the admin of that name") from error
        return row, f"umbel_{id}_{secret}"

    def list(self, by: Identity) -> Sequence[Admin]:
        """The administrators whose populations `by` covers, expired and revoked ones included, sorted by name."""
        with self._database.transaction() as session:
            rows = session.scalars(select(Admin).order_by(Admin.name, Admin.created)).all()
        return [row for row in rows if by.covers(row.populations)]

    def revoke(self, by: Identity, name: str) -> Admin:
        """Revoke an administrator's token; raises UnknownAdmin."""
        with self._database.transaction() as session:
            query = select(Admin).where(Admin.name == name, Admin.revoked == 0).with_for_update()
            row = session.scalars(query).one_or_none()
            if row is None or not by.covers(row.populations):
                raise UnknownAdmin(f"no admin {name[:64]!r} is known here; see 'umbel admin list'")
            row.revoked = self._clock()
        self._forget(row.secret)
        return row

    def identify(self, token: str, address: str) -> Identity:
        """The owner of a token that came from a network `address`; raises WrongToken or TooManyFailures."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise WrongToken(
                "expected an admin's token; run this on the server's machine, or set UMBEL_URL and UMBEL_TOKEN"
            )
        with self._database.transaction() as session:
            row = session.get(Admin, match[1])
        if row is None:
            raise WrongToken("this token is not known here; ask an owner of this server for one ('umbel admin add')")
        if row.revoked:
            raise WrongToken("this token was revoked; ask an owner of this server for another ('umbel admin add')")
        if row.expires and row.expires <= self._clock():
            raise WrongToken(
                f"this token expired on {datetime.fromtimestamp(row.expires, UTC):%Y-%m-%d %H:%M} UTC; "
                "ask an owner of this server for another ('umbel admin add')"
            )
        if not self._remembers(token, row.secret):
            self._verify(token, match[2], row, address)
        if (role := next((role for role in ROLES if role == row.role), None)) is None:
            raise WrongToken(
                f"the database says {row.role[:40]!r} is the role of {row.name}, which is none; revoke this token"
            )
        return Identity(row.name, role, tuple(row.populations))

    def _verify(self, token: str, secret: str, row: Admin, address: str) -> None:
        with self._turn:
            network = network_of(address)
            # A network that sent no wrong token is not limited, so that a stranger cannot lock the owner out.
            if not self._failures.is_full(network) and (
                wait := max(self._failures.wait(network), self._all_failures.wait(row.id))
            ):
                raise TooManyFailures(wait)
            try:
                self._hasher.verify(row.secret, secret)
            except (Argon2Error, InvalidHashError) as error:
                self._failures.use(network)
                self._all_failures.use(row.id)
                raise WrongToken("this token is not known here; ask an owner of this server for one") from error
        with self._memory:
            self._remembered[_digest(token)] = row.secret, self._clock() + REMEMBERED_SECONDS
            while len(self._remembered) > MOST_REMEMBERED:
                self._remembered.popitem(last=False)

    def _remembers(self, token: str, hashed: str) -> bool:
        with self._memory:
            known, until = self._remembered.get(_digest(token), ("", 0.0))
        return known == hashed and self._clock() < until

    def _forget(self, hashed: str) -> None:
        with self._memory:
            for digest in [digest for digest, (known, _) in self._remembered.items() if known == hashed]:
                del self._remembered[digest]


def is_local(token: str, admin_token: str) -> bool:
    """Whether a token is the state folder's own, which only a user of the server's machine can read."""
    return hmac.compare_digest(token.encode(errors="replace"), admin_token.encode())


def public_id(token: str) -> str:
    """The public id in a text of the form of an admin's token, else ""."""
    match = _TOKEN.fullmatch(token)
    return match[1] if match is not None else ""


def describe(row: Admin) -> answers.Admin:
    """An administrator as the API shows it: of the token only the public id; times in Unix seconds."""
    return answers.Admin(
        id=row.id,
        name=row.name,
        role=row.role,
        populations=row.populations,
        created=row.created,
        expires=row.expires,
        revoked=row.revoked,
    )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
