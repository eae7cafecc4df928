"""What the agent remembers across restarts: its folder, its key, the inbox and a few counters."""

import fcntl
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec
from joserfc.jwk import ECKey

from umbel import signing
from umbel.atomic import write_atomically
from umbel.enrolment import CLOCK_TOLERANCE, Trust, read_trust
from umbel.errors import NOT_DECODED, SignatureError, UmbelError
from umbel.signing import PublicKey
from umbel_edge.identity.keys import FileStore, KeyStore

SCHEMA = 2
DATABASE = "agent.sqlite"
KEPT_SECONDS = 86_400.0
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


class Answer(msgspec.Struct, frozen=True):
    """What a command was answered with: the channel, the signed message, and its sequence where it is new."""

    channel: Literal["ack", "result"]
    token: bytes
    sequence: int = 0


class AgentState:
    """An opened state folder; only one process can have it open. Safe to use from several threads.

    The key is in `store`: without one, in a file of the folder.
    """

    def __init__(self, folder: Path, store: KeyStore | None = None) -> None:
        foreign = folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _is_ours(folder)))
        if foreign:
            raise UmbelError(f"{folder}: expected a new folder or one that umbel-agent made; name another one as state")
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self.folder = folder
        self._lock_file = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_file.close()
            raise UmbelError(
                f"{folder}: another umbel-agent uses this state folder; stop it, or name another one"
            ) from error
        self._lock = threading.RLock()
        try:
            self._database = sqlite3.connect(folder / DATABASE, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(_TABLES)
            schema = int(self.fact("schema", str(SCHEMA)))
            if schema == 1:
                self._database.execute("ALTER TABLE inbox ADD COLUMN command BLOB NOT NULL DEFAULT x''")
        except (sqlite3.DatabaseError, ValueError) as error:
            self._lock_file.close()
            raise UmbelError(
                f"{folder / DATABASE}: not a database of umbel-agent ({error}); name another state folder"
            ) from error
        if schema > SCHEMA:
            self.close()
            raise UmbelError(
                f"{folder}: made by a newer umbel-agent (schema {schema}, this one has {SCHEMA}); upgrade it"
            )
        self.remember("schema", str(SCHEMA))
        self._cancelled = {str(row[0]) for row in self._database.execute("SELECT assignment FROM cancelled")}
        self._store = store or FileStore(folder)

    @cached_property
    def key(self) -> ECKey:
        """The device's signing key, made when it is asked for the first time.

        Raises UmbelError when its store cannot be used, has lost the key, or has another one.
        """
        known = self.fact("key")
        key = self._store.load()
        if key is None:
            if known:
                raise UmbelError(
                    f"{self._store.where}: the key {known[:8]} of this device is gone; restore it, or enrol with a new state folder"
                )
            key = self._store.create()
        found = signing.fingerprint(key)
        if known not in ("", found):
            raise UmbelError(
                f"{self._store.where}: expected the key {known[:8]} that this device is known by, found {found[:8]}; "
                "correct [key], or enrol with a new state folder"
            )
        if not known:
            self.remember("key", found)
        return key

    def close(self) -> None:
        """Close the database, let go of the key, and let another process have the folder."""
        self._store.close()
        self._database.close()
        self._lock_file.close()

    @contextmanager
    def change(self) -> Iterator[None]:
        """A transaction: all of the block's changes are kept, or none."""
        with self._lock:
            if self._database.in_transaction:
                yield
                return
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._database.in_transaction:  # SQLite has ended it itself when the storage is full
                    self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def fact(self, name: str, default: str = "") -> str:
        """A remembered value."""
        with self._lock:
            row = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else default

    def remember(self, name: str, value: str) -> None:
        """Remember a value."""
        with self.change():
            self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def count(self, name: str) -> int:
        """Add one to a counter and return it."""
        with self.change():
            value = int(self.fact(name, "0")) + 1
            self.remember(name, str(value))
        return value

    @property
    def rounds(self) -> int:
        """Assignments this device has finished training."""
        return int(self.fact("rounds", "0"))

    def count_round(self) -> None:
        """Count one more finished assignment."""
        self.count("rounds")

    def begin(self, command: str, expires: float, signed: bytes = b"") -> Answer | None | bool:
        """Take a command in: False when it is new, else its answer, or None while it is being worked on.

        `signed` is the whole message, kept until the command is answered.
        """
        with self.change():
            row = self._database.execute("SELECT channel, token FROM inbox WHERE id = ?", (command,)).fetchone()
            if row is None:
                self._database.execute(
                    "INSERT INTO inbox (id, expires, command) VALUES (?, ?, ?)", (command, expires, signed)
                )
                return False
        return Answer(row[0], row[1]) if row[1] else None

    def known(self, command: str) -> Answer | None:
        """What a command was answered with, or None when it was not, or is not known."""
        with self._lock:
            row = self._database.execute("SELECT channel, token FROM inbox WHERE id = ?", (command,)).fetchone()
        return Answer(row[0], row[1]) if row is not None and row[1] else None

    def answer(self, command: str, answer: Answer) -> None:
        """Remember what a command was answered with."""
        with self.change():
            self._database.execute(
                "UPDATE inbox SET channel = ?, token = ?, command = x'' WHERE id = ?",
                (answer.channel, answer.token, command),
            )
            self.note_answered(answer.sequence)

    @property
    def answered(self) -> int:
        """The highest sequence of a final answer that this device remembers to have given."""
        return int(self.fact("answered", "0"))

    def note_answered(self, sequence: int) -> None:
        """Remember that a final answer of this sequence was given."""
        with self.change():
            if sequence > self.answered:
                self.remember("answered", str(sequence))

    def begin_memory(self, sequence: int) -> None:
        """Nothing is known of commands up to this sequence, so `remembers` none of them from now on."""
        self.remember("memory", str(sequence))

    def remembers(self, sequence: int, expires: float) -> bool:
        """Whether a command would be known here if it had come before: else it may not be executed."""
        return sequence > int(self.fact("memory", "0")) and expires > float(self.fact("forgotten", "0"))

    def forget_old(self, now: float) -> None:
        """Forget what nobody can send any more: what had expired `now` (the server's time), and a stated clock's error before.

        None of that is remembered again, whatever time it is later.
        """
        forgotten = now - CLOCK_TOLERANCE
        with self.change():
            if forgotten > float(self.fact("forgotten", "0")):
                self.remember("forgotten", str(forgotten))
            self._database.execute("DELETE FROM inbox WHERE expires < ? AND token != x''", (forgotten,))
            for table, column in (("cancelled", "at"), ("uploads", "begun")):
                self._database.execute(f"DELETE FROM {table} WHERE {column} < ?", (now - KEPT_SECONDS,))

    def unanswered(self) -> dict[str, bytes]:
        """The signed commands that were begun and not answered, by id, in the order in which they came."""
        with self._lock:
            rows = self._database.execute("SELECT id, command FROM inbox WHERE token = x'' ORDER BY rowid").fetchall()
        return {str(id): bytes(command) for id, command in rows}

    def forget(self, command: str) -> None:
        """Count a command as never taken in: when it comes again, it is new."""
        with self.change():
            self._database.execute("DELETE FROM inbox WHERE id = ?", (command,))

    def cancel(self, assignment: str, now: float) -> None:
        """Remember for a day that an assignment is not to be worked on."""
        with self.change():
            self._database.execute("INSERT OR REPLACE INTO cancelled VALUES (?, ?)", (assignment, now))
        self._cancelled.add(assignment)

    def is_cancelled(self, assignment: str) -> bool:
        """Whether an assignment is not to be worked on; asked before every batch, so without the database."""
        return assignment in self._cancelled

    def begin_upload(self, sha256: str, now: float) -> bool:
        """Remember that a blob's upload has begun; returns whether it had begun before."""
        with self.change():
            return not self._database.execute("INSERT OR IGNORE INTO uploads VALUES (?, ?)", (sha256, now)).rowcount

    def end_upload(self, sha256: str) -> None:
        """Forget an upload."""
        with self.change():
            self._database.execute("DELETE FROM uploads WHERE sha256 = ?", (sha256,))

    def keep_outgoing(self, command: str, outcome: bytes) -> None:
        """Remember a command's encoded outcome, of which something is still to be uploaded."""
        with self.change():
            self._database.execute("INSERT OR REPLACE INTO outgoing VALUES (?, ?)", (command, outcome))

    def outgoing(self, command: str) -> bytes | None:
        """The outcome that was kept for a command."""
        with self._lock:
            row = self._database.execute("SELECT outcome FROM outgoing WHERE command = ?", (command,)).fetchone()
        return bytes(row[0]) if row else None

    def all_outgoing(self) -> list[str]:
        """The commands for which an outcome is kept."""
        with self._lock:
            return [str(row[0]) for row in self._database.execute("SELECT command FROM outgoing")]

    def drop_outgoing(self, command: str) -> None:
        """Forget a command's kept outcome."""
        with self.change():
            self._database.execute("DELETE FROM outgoing WHERE command = ?", (command,))

    def pinned(self) -> Trust | None:
        """What this device trusts, once enrolled."""
        return pinned_in(self.folder)

    def pin(self, trust: Trust) -> None:
        """Trust this from now on."""
        write_atomically(self.folder / "trust.json", msgspec.json.encode(trust), mode=0o600)


def pinned_in(folder: Path) -> Trust | None:
    """What the device with this state folder trusts, once enrolled, whether or not somebody has the folder open."""
    path = folder / "trust.json"
    try:
        return read_trust(path.read_bytes())
    except FileNotFoundError:
        return _pinned_key(folder)
    except SignatureError as error:
        raise UmbelError(f"{path}: expected what this device trusts, got {error}; enrol with a new folder") from error


def _pinned_key(folder: Path) -> Trust | None:
    """The key that an agent before this one pinned, which knew no certificates."""
    try:
        key = msgspec.json.decode((folder / "server-key.json").read_bytes(), type=PublicKey)
    except (FileNotFoundError, *NOT_DECODED):
        return None
    return Trust(key)


def _is_ours(folder: Path) -> bool:
    return (folder / DATABASE).exists() or (folder / "lock").exists()
