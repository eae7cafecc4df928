"""The server's database: its tables, its transactions, and its schema's migrations."""

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
"""The first version with RETURNING."""


class Base(DeclarativeBase):
    """The base of all tables; `migrations/` holds the history of the schema."""

    type_annotation_map = {dict[str, Any]: JSON, dict[str, str]: JSON, dict[str, float]: JSON, list[str]: JSON}


class Device(Base):
    """One phone, vehicle or gateway: its key, its state, and its last status. Times are in Unix seconds.

    node_id: its Flower node id.
    assigned: time of its last assignment.
    rejections, quarantined: updates refused since it was last readmitted; why it gets no more assignments, or "".
    state, state_since, state_reason: active, suspended, revoked or deleted. The row of a deleted device stays for its runs.
    fingerprint: of its key, unique; None for a deleted device, and for devices that an older server let share a key.
    name: a display name for people.
    labels, set_labels: the device's own labels; those that an administrator set, which override them.
    answered: the highest sequence number of its final answers.
    agreement: the public key that encrypts commands for its running agent.
    skew: seconds by which its clock was last ahead of the server's.
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
    """The key of a revoked or deleted device, by fingerprint.

    A revoked key never enrols again; the key of a deleted device enrols again only with a new invitation.
    """

    __tablename__ = "refused_keys"
    fingerprint: Mapped[str] = mapped_column(String(43), primary_key=True)
    state: Mapped[str]
    population: Mapped[str] = mapped_column(String(64))
    device: Mapped[str] = mapped_column(String(64))
    since: Mapped[float]


class Invitation(Base):
    """One device may enrol with it until `expires`; `secret` is the SHA-256 of the token's secret, in hex.

    `used` and `revoked` are Unix times, 0 if it was not; `device` is the device that used it. The device gets the `labels`,
    and the `kind` unless it is empty.
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
    """A command in the outbox: it stays `pending` or `accepted` until its final acknowledgement or its expiry.

    `token` is the signed command. With `sealed` it is sent only encrypted for its device.
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

    `weights` is the address of the first weights when they are not the plan's initial ones. Abandoned rounds are counted
    from the time `resumed` on.
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

    `seconds` is the time that the server spent on it, by step.
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

    The device trains from the checkpoint before `round` (or evaluates that of `round`) and may answer until `closes`. A
    folded update is part of checkpoint `folded_into` with `weight`. `bytes_down` and `bytes_up` are the bytes of weights
    and update that travelled.
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
    metrics: Mapped[dict[str, float | None | list[float | None]]] = mapped_column(JSON, default=dict)


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
    """A blob that belongs to a population; a blob that belongs to two populations has two rows."""

    __tablename__ = "blob_populations"
    __table_args__ = (Index("blob_populations_size", "population", "size"),)
    population: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    since: Mapped[float]


class Quota(Base):
    """The quota of a population; None means no limit. Sizes in bytes."""

    __tablename__ = "quotas"
    population: Mapped[str] = mapped_column(String(64), primary_key=True)
    devices: Mapped[int | None] = mapped_column(BigInteger)
    storage: Mapped[int | None] = mapped_column(BigInteger)
    bytes_per_day: Mapped[int | None] = mapped_column(BigInteger)


class Traffic(Base):
    """Bytes of blobs that a population downloaded and uploaded over HTTP on one day (UTC, in days since 1970)."""

    __tablename__ = "traffic"
    population: Mapped[str] = mapped_column(String(64), primary_key=True)
    day: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    down: Mapped[int] = mapped_column(BigInteger, default=0)
    up: Mapped[int] = mapped_column(BigInteger, default=0)


class Admin(Base):
    """An administrator with a token: `id` is the token's public part, `secret` the argon2id hash of the rest.

    An administrator without `populations` sees all of them. `expires` is 0 for a token that never expires, `revoked` is 0
    until it is revoked. At most one administrator of a name is not revoked.
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
    """One entry of the audit log, which the database refuses to change or remove; see umbel_server.security.audit.chain."""

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
"""Tables that a round reads and writes for each of its devices. It uses SQL statements on them: objects cost more time."""


_AT_ONCE = 500


def batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """The names, split into batches that one statement may list."""
    for start in range(0, len(names), _AT_ONCE):
        yield names[start : start + _AT_ONCE]


class Database:
    """Transactions on the database at `url` (SQLAlchemy form); opening it brings it to the newest schema.

    With SQLite, writers take turns on a lock here, so that they do not fail with "database is locked".
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
        """A session whose changes are committed together, or not at all after an exception."""
        if self._sqlite:
            with self._turn, Session(self._engine, expire_on_commit=False) as session, session.begin():
                yield session
        else:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                yield session

    def settle(self) -> None:
        """Sync committed changes to the disk, so that they survive a power failure; SQLite's log is not synced at each commit."""
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
    connection.isolation_level = None  # the "begin" listener sends BEGIN IMMEDIATE, which takes the write lock at once
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
