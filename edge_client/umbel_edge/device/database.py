"""The SQLite database in the agent's state folder."""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from umbel.errors import UmbelError

log = logging.getLogger("umbel.agent")

DATABASE = "agent.sqlite"
DAMAGED = "agent.sqlite.damaged"
_DAMAGES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
SCHEMA = 2
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS inbox (
    id TEXT PRIMARY KEY, expires REAL NOT NULL, channel TEXT NOT NULL DEFAULT '', token BLOB NOT NULL DEFAULT x'',
    command BLOB NOT NULL DEFAULT x''
);
CREATE TABLE IF NOT EXISTS cancelled (assignment TEXT PRIMARY KEY, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS uploads (sha256 TEXT PRIMARY KEY, begun REAL NOT NULL);
CREATE TABLE IF NOT EXISTS outgoing (command TEXT PRIMARY KEY, outcome BLOB NOT NULL);
"""


class StateDatabase:
    """The opened database. Safe to use from several threads.

    A database of an older agent is upgraded. A damaged file, as a power failure may leave it, is set aside and a new one is
    begun: the device's key and its trust are files of their own. Raises UmbelError when another program made the file, or a
    newer agent.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / DATABASE
        self._lock = threading.RLock()
        try:
            try:
                self._connection = _opened(path)
            except sqlite3.DatabaseError as error:
                if not _is_damaged(error):
                    raise
                _set_aside(path, error)
                self._connection = _opened(path)
            schema = int(self.fact("schema", str(SCHEMA)))
            if schema == 1:
                self._connection.execute("ALTER TABLE inbox ADD COLUMN command BLOB NOT NULL DEFAULT x''")
        except (sqlite3.DatabaseError, ValueError) as error:
            raise UmbelError(f"{path}: not a database of umbel-agent ({error}); name another state folder") from error
        if schema > SCHEMA:
            self.close()
            raise UmbelError(
                f"{folder}: made by a newer umbel-agent (schema {schema}, this one has {SCHEMA}); upgrade it"
            )
        self.remember("schema", str(SCHEMA))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def change(self) -> Iterator[None]:
        """A transaction: all changes of the block are kept, or none. A transaction inside another one is part of it."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._connection.in_transaction:  # SQLite ends the transaction itself when the storage is full
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def write(self, statement: str, *values: object) -> int:
        """Execute a statement that changes rows, in a transaction; returns how many it changed."""
        with self.change():
            return self._connection.execute(statement, values).rowcount

    def row(self, query: str, *values: object) -> Any | None:
        """The first row that a query finds, or None."""
        with self._lock:
            return self._connection.execute(query, values).fetchone()

    def rows(self, query: str, *values: object) -> list[Any]:
        """Every row that a query finds."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def fact(self, name: str, default: str = "") -> str:
        """The value of a named fact, or `default`."""
        row = self.row("SELECT value FROM facts WHERE name = ?", name)
        return str(row[0]) if row else default

    def remember(self, name: str, value: str) -> None:
        """Set the value of a named fact."""
        self.write("INSERT OR REPLACE INTO facts VALUES (?, ?)", name, value)

    def count(self, name: str) -> int:
        """Add one to a named counter, which begins at 0, and return it."""
        with self.change():
            value = int(self.fact(name, "0")) + 1
            self.remember(name, str(value))
        return value


def _opened(path: Path) -> sqlite3.Connection:
    """A connection to the file, with all tables; raises DatabaseError when a page of it is damaged."""
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            damage = sqlite3.DatabaseError(str(found))
            damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damage
        connection.executescript(_TABLES)
    except BaseException:
        connection.close()
        raise
    return connection


def _is_damaged(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGES  # the primary result code


def _set_aside(path: Path, error: sqlite3.DatabaseError) -> None:
    """Rename a damaged file; an earlier one that was set aside is replaced, so that they do not fill the storage."""
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    path.replace(path.with_name(DAMAGED))
    log.error(
        "%s is damaged (%s): it is now %s, and the agent goes on with an empty one. The device keeps its identity. It lost the "
        "commands that it had taken in, its answers, and its counts of sessions and rounds: the server sends open commands anew, "
        "and those from before now are not executed",
        *(path, error, DAMAGED),
    )
