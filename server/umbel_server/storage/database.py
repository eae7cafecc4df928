"""The server's durable state: one table a thing, one transaction a transition."""

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from alembic import command as alembic
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import (
    JSON,
    BigInteger,
    Engine,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    String,
    Table,
    create_engine,
    event,
    false,
    text,
)
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from umbel.errors import UmbelError

SQLITE_BUSY_SECONDS = 10.0
LEAST_SQLITE = (3, 35)
"""The first with RETURNING."""


class Base(DeclarativeBase):
    """The tables; `migrations/` holds their history."""

    type_annotation_map = {dict[str, Any]: JSON, dict[str, str]: JSON, dict[str, float]: JSON, list[str]: JSON}


class Device(Base):
    """One phone, vehicle or gateway: its key, and what it last said of itself. `node_id` is its Flower node id.

    `assigned` is when it was last given an assignment; `rejections` counts its updates that were vetted and refused since
    it was last readmitted, and `quarantined` says why it gets no more assignments. `state` is active, suspended, revoked
    or deleted, since `state_since` and for `state_reason`; of a deleted device the row stays, for the runs that it was in.
    No two have the same key: `fingerprint` is its, of a deleted device None, and of those that an older server let share one.
    `name` is for people; `set_labels` are an administrator's, and win over its own `labels`. `answered` is the highest sequence
    of its final answers, `agreement` the key that seals what its running process may read, and `skew` by how many seconds
    its clock was last seen ahead of the server's.
    """

    __tablename__ = "devices"
    __table_args__ = (Index("devices_fingerprint", "fingerprint", unique=True),)
    population: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    node_id: Mapped[int] = mapped_column(BigInteger, unique=True)
    kind: Mapped[str]
    key: Mapped[dict[str, str]]
    enrolled: Mapped[float]
    last_seen: Mapped[float]
    epoch: Mapped[int] = mapped_column(BigInteger, default=0)
    said_epoch: Mapped[int] = mapped_column(BigInteger, default=0)
    said_sequence: Mapped[int] = mapped_column(BigInteger, default=0)
    online: Mapped[bool] = mapped_column(default=False)
    trainer: Mapped[str] = mapped_column(default="")
    runtime: Mapped[str] = mapped_column(default="")
    agent: Mapped[str] = mapped_column(default="")
    examples: Mapped[int] = mapped_column(default=0)
    rss_mb: Mapped[float] = mapped_column(default=0.0)
    installed: Mapped[str] = mapped_column(default="")
    labels: Mapped[dict[str, str]] = mapped_column(default=dict)
    assigned: Mapped[float] = mapped_column(default=0.0)
    rejections: Mapped[int] = mapped_column(default=0)
    quarantined: Mapped[str] = mapped_column(default="")
    reasons: Mapped[list[str]] = mapped_column(default=list, server_default="[]")
    name: Mapped[str] = mapped_column(default="", server_default="")
    set_labels: Mapped[dict[str, str]] = mapped_column(default=dict, server_default="{}")
    state: Mapped[str] = mapped_column(default="active", server_default="active")
    state_reason: Mapped[str] = mapped_column(default="", server_default="")
    state_since: Mapped[float] = mapped_column(default=0.0, server_default="0")
    answered: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    agreement: Mapped[dict[str, str] | None] = mapped_column(JSON)
    skew: Mapped[float] = mapped_column(default=0.0, server_default="0")
    fingerprint: Mapped[str | None] = mapped_column(String(43))


class RefusedKey(Base):
    """The key, by its fingerprint, of a device that was revoked or deleted: it enrols no more, or only when invited anew."""

    __tablename__ = "refused_keys"
    fingerprint: Mapped[str] = mapped_column(String(43), primary_key=True)
    state: Mapped[str]
    population: Mapped[str] = mapped_column(String(64))
    device: Mapped[str] = mapped_column(String(64))
    since: Mapped[float]


class Invitation(Base):
    """One device may enrol with it until `expires`; `secret` is the SHA-256 of the token's secret, in hex.

    `used` and `revoked` are when that happened, 0 before; `device` is who used it. The device gets the `labels`, and the
    `kind` unless it is empty.
    """

    __tablename__ = "invitations"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    population: Mapped[str] = mapped_column(String(64))
    secret: Mapped[str] = mapped_column(String(64), unique=True)
    labels: Mapped[dict[str, str]]
    kind: Mapped[str]
    created: Mapped[float]
    expires: Mapped[float]
    used: Mapped[float] = mapped_column(default=0.0)
    device: Mapped[str] = mapped_column(String(64), default="")
    revoked: Mapped[float] = mapped_column(default=0.0)


class Command(Base):
    """The outbox: a command stays `pending` or `accepted` until it is acknowledged for good or expired.

    `token` is the signed command, which leaves only sealed for its device when it is to be `sealed`.
    """

    __tablename__ = "commands"
    __table_args__ = (
        ForeignKeyConstraint(["population", "device"], ["devices.population", "devices.id"]),
        Index("commands_open", "state", "population", "device"),
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    population: Mapped[str] = mapped_column(String(64))
    device: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str]
    token: Mapped[bytes] = mapped_column(LargeBinary)
    issued: Mapped[float]
    expires: Mapped[float]
    updated: Mapped[float]
    state: Mapped[str] = mapped_column(default="pending")
    reason: Mapped[str] = mapped_column(default="")
    outcome: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    sealed: Mapped[bool] = mapped_column(default=False, server_default=false())


class Run(Base):
    """Training one plan on one population. States: running, paused, finished, stopped, failed.

    `weights` is the address of what it starts from when that is not the plan's initial weights; abandoned rounds count
    since it was `resumed`.
    """

    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    population: Mapped[str] = mapped_column(String(64))
    plan: Mapped[str] = mapped_column(String(64))
    task: Mapped[str]
    settings: Mapped[dict[str, Any]]
    created: Mapped[float]
    updated: Mapped[float]
    state: Mapped[str] = mapped_column(default="running")
    reason: Mapped[str] = mapped_column(default="")
    round: Mapped[int] = mapped_column(default=0)
    weights: Mapped[str] = mapped_column(String(64), default="")
    resumed: Mapped[float] = mapped_column(default=0.0)


class Round(Base):
    """An attempt at a round: `wanted` updates until `closes`. States: open, committed, abandoned.

    `seconds` is what the server spent on it, by what it did.
    """

    __tablename__ = "rounds"
    __table_args__ = (ForeignKeyConstraint(["run"], ["runs.id"]),)
    run: Mapped[str] = mapped_column(String(32), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    opened: Mapped[float]
    closes: Mapped[float]
    wanted: Mapped[int]
    quorum: Mapped[int]
    closed: Mapped[float] = mapped_column(default=0.0)
    state: Mapped[str] = mapped_column(default="open")
    reason: Mapped[str] = mapped_column(default="")
    seconds: Mapped[dict[str, float]] = mapped_column(default=dict)


class Checkpoint(Base):
    """The global weights committed by a round (round 0: the plan's initial weights), with held-out and fleet metrics."""

    __tablename__ = "checkpoints"
    __table_args__ = (ForeignKeyConstraint(["run"], ["runs.id"]),)
    run: Mapped[str] = mapped_column(String(32), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    weights: Mapped[str] = mapped_column(String(64))
    strategy: Mapped[str | None] = mapped_column(String(64))
    metrics: Mapped[dict[str, float]]
    fleet_metrics: Mapped[dict[str, float]]
    contributors: Mapped[int]
    started: Mapped[float]
    committed: Mapped[float]


class Assignment(Base):
    """One device's work in one round; umbel_server.rounds.assignments has its states.

    It trains from the checkpoint before `round` (or evaluates that of `round`) and may answer until `closes`. A folded
    update is in checkpoint `folded_into` with `weight`. `bytes_down` and `bytes_up` are the weights and update it travelled.
    """

    __tablename__ = "assignments"
    __table_args__ = (
        ForeignKeyConstraint(["run"], ["runs.id"]),
        ForeignKeyConstraint(["population", "device"], ["devices.population", "devices.id"]),
        Index("assignments_of_round", "run", "round"),
        Index("assignments_waiting", "population", "state"),
        Index("assignments_into_checkpoint", "run", "folded_into"),
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    run: Mapped[str] = mapped_column(String(32))
    round: Mapped[int]
    population: Mapped[str] = mapped_column(String(64))
    device: Mapped[str] = mapped_column(String(64))
    command: Mapped[str] = mapped_column(String(32), unique=True)
    kind: Mapped[str]
    offered: Mapped[float]
    updated: Mapped[float]
    state: Mapped[str] = mapped_column(default="offered")
    reason: Mapped[str] = mapped_column(default="")
    update: Mapped[str | None] = mapped_column(String(64))
    examples: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)
    attempt: Mapped[int] = mapped_column(default=0)
    closes: Mapped[float] = mapped_column(default=0.0)
    weight: Mapped[float] = mapped_column(default=0.0)
    folded_into: Mapped[int | None] = mapped_column(default=None)
    bytes_down: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_up: Mapped[int] = mapped_column(BigInteger, default=0)
    metrics: Mapped[dict[str, float | list[float]]] = mapped_column(JSON, default=dict)


class Release(Base):
    """TFLite files exported from a checkpoint; `manifest` is the signed manifest that devices verify."""

    __tablename__ = "releases"
    __table_args__ = (ForeignKeyConstraint(["run"], ["runs.id"]),)
    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    run: Mapped[str] = mapped_column(String(32))
    round: Mapped[int]
    task: Mapped[str]
    created: Mapped[float]
    manifest: Mapped[bytes] = mapped_column(LargeBinary)
    files: Mapped[dict[str, Any]]


class BlobPopulation(Base):
    """A blob that belongs to a population; of one with the same bytes in two populations there are two rows."""

    __tablename__ = "blob_populations"
    __table_args__ = (Index("blob_populations_size", "population", "size"),)
    population: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    since: Mapped[float]


class Quota(Base):
    """What a population may use; None is without limit. Sizes in bytes."""

    __tablename__ = "quotas"
    population: Mapped[str] = mapped_column(String(64), primary_key=True)
    devices: Mapped[int | None] = mapped_column(BigInteger)
    storage: Mapped[int | None] = mapped_column(BigInteger)
    bytes_per_day: Mapped[int | None] = mapped_column(BigInteger)


class Traffic(Base):
    """Bytes of blobs that went down to, and came up from, a population over HTTP on one day (UTC, days since 1970)."""

    __tablename__ = "traffic"
    population: Mapped[str] = mapped_column(String(64), primary_key=True)
    day: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    down: Mapped[int] = mapped_column(BigInteger, default=0)
    up: Mapped[int] = mapped_column(BigInteger, default=0)


class Admin(Base):
    """Someone who may use the API, known by a token; `id` is its public part and `secret` the argon2id hash of the rest.

    Without `populations` it sees all of them. `expires` and `revoked` are 0 while they are never and not yet; of one name
    at most one is not revoked.
    """

    __tablename__ = "admins"
    __table_args__ = (
        Index(
            "admins_name", "name", unique=True, sqlite_where=text("revoked = 0"), postgresql_where=text("revoked = 0")
        ),
    )
    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    role: Mapped[str] = mapped_column(String(16))
    populations: Mapped[list[str]]
    secret: Mapped[str]
    created: Mapped[float]
    expires: Mapped[float] = mapped_column(default=0.0)
    revoked: Mapped[float] = mapped_column(default=0.0)


class AuditEntry(Base):
    """One line of the audit log; the database refuses to change or remove it. umbel_server.security.audit.chain has its meaning."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_who", "who"), Index("audit_at", "at"))
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[float]
    who: Mapped[str] = mapped_column(String(160))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(256))
    population: Mapped[str] = mapped_column(String(64))
    detail: Mapped[str]
    outcome: Mapped[str]
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


DEVICES = cast(Table, Device.__table__)
COMMANDS = cast(Table, Command.__table__)
ASSIGNMENTS = cast(Table, Assignment.__table__)
"""The tables that a round reads and writes once or more for each of its devices: by statements on them, not objects."""


_AT_ONCE = 500


def batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """The names in as many as one statement may list."""
    for start in range(0, len(names), _AT_ONCE):
        yield names[start : start + _AT_ONCE]


class Database:
    """Transactions on the database at `url` (SQLAlchemy form), brought to the newest schema when opened.

    With SQLite writers take turns here, so none of them meets "database is locked".
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = create_engine(url)
        except (ArgumentError, ImportError, ValueError) as error:
            raise UmbelError(
                "the database in umbel.toml should be a URL such as postgresql+psycopg://user@host/name, whose driver is "
                f"installed ({error}); correct it"
            ) from error
        self._sqlite = self._engine.dialect.name == "sqlite"
        if self._sqlite and sqlite3.sqlite_version_info < LEAST_SQLITE:
            raise UmbelError(
                f"SQLite should be {'.'.join(map(str, LEAST_SQLITE))} or newer, this Python has {sqlite3.sqlite_version}; "
                "use another Python, or PostgreSQL (database in umbel.toml)"
            )
        self._turn = threading.RLock()
        if self._sqlite:
            event.listen(self._engine, "connect", _configure_sqlite)
            event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        _migrate(self._engine, url)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session whose changes are all committed, or none."""
        if self._sqlite:
            with self._turn, Session(self._engine, expire_on_commit=False) as session, session.begin():
                yield session
        else:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                yield session

    def settle(self) -> None:
        """Make what was committed survive a power failure too: SQLite's log is written to the disk only now and then."""
        log = f"{self._engine.url.database}-wal"
        if not self._sqlite or not os.path.exists(log):
            return
        handle = os.open(log, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, so that a transaction takes its lock at its start
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={int(SQLITE_BUSY_SECONDS * 1000)}")
    cursor.close()


def _migrate(engine: Engine, url: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            alembic.upgrade(config, "head")
            connection.commit()
    except (CommandError, DatabaseError) as error:
        first = str(error).splitlines()[0]
        raise UmbelError(
            f"the database {engine.url.render_as_string()} cannot be used by this Umbel ({first}); "
            "use the Umbel that made it, or a newer one"
        ) from error
