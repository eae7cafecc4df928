"""Received blobs: the blobs that devices sent in answer to commands, kept apart from the server's own and removed in time.

Each command has a store of its own. So its blobs are removed without a look at who else has the same bytes, and a blob
from a device can neither replace nor remove a plan, a checkpoint, a release or an administrator's file.
"""

import logging
import shutil
import threading
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from obstore.exceptions import BaseError as StoreError
from sqlalchemy import bindparam, select
from sqlalchemy.exc import SQLAlchemyError

from umbel.loops import Loop
from umbel_server.commands.outbox import OPEN
from umbel_server.rounds.assignments import LIVE
from umbel_server.storage.blob_ownership import BlobOwnership
from umbel_server.storage.blobs import Blobs, MissingBlob
from umbel_server.storage.database import ASSIGNMENTS, COMMANDS, Database, batches

log = logging.getLogger("umbel.exchange")

FOLDER = "received"
GATHER_SECONDS = 0.2
"""Removal waits this long, so that the commands that end meanwhile are removed together; a round does not wait for it."""

RETRY_SECONDS = 60.0
"""A failed removal is tried again after this long, and at every removal before that."""

STOP_SECONDS = 10.0
"""`stop` waits this long for a removal and leaves the rest to the next process: the bucket may not answer."""

_STATE = select(*COMMANDS.c["population", "state"]).where(COMMANDS.c.id == bindparam("of"))


class ReceivedBlobs:
    """The commands' stores beside the server's `blobs`, and their unfinished uploads in the folder `parts`.

    With `keeps_updates` the blob that answered a command stays for good, so that every checkpoint can be computed again.
    `start` sweeps, and begins the thread that removes; `stop` ends it.
    """

    def __init__(
        self, database: Database, blobs: Blobs, ownership: BlobOwnership, parts: Path, keeps_updates: bool
    ) -> None:
        self._database, self._blobs, self._parts, self._keeps = database, blobs, parts, keeps_updates
        self.ownership = ownership
        self._ended: set[str] = set()
        self._unanswered: dict[str, _Unanswered] = {}
        self._sums: dict[str, int] = {}
        self._lock, self._stopped, self._some = threading.Lock(), threading.Event(), threading.Event()
        self._thread = Loop("received blobs", self._work, self._stopped, log)

    def start(self) -> None:
        """Remove what an earlier process left behind, and from then on what `remove_soon` names."""
        self.sweep()
        self._thread.start()

    def stop(self) -> None:
        """Finish the removal in progress, within STOP_SECONDS, and end the thread."""
        self._stopped.set()
        self._some.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def of(self, command: str) -> Blobs:
        """The store of one command."""
        return self._blobs.apart(f"{FOLDER}/{command}")

    def owned(self, population: str, sha256: str) -> Blobs:
        """The server's own store, for a blob that a population owns there; raises MissingBlob when it does not."""
        self.ownership.check([population], sha256)
        return self._blobs

    def size(self, population: str, command: str, sha256: str) -> int:
        """The bytes of a blob that answers a command; raises MissingBlob."""
        try:
            return self.of(command).size(sha256)
        except MissingBlob:
            return self.owned(population, sha256).size(sha256)

    def unanswered_bytes(self, population: str) -> int:
        """The bytes received for a population's open commands, before any answer refers to them."""
        return self._sums.get(population, 0)

    def begin_upload(self, command: str) -> None:
        """Stop counting a command's unfinished upload: the request that continues it counts those bytes."""
        with self._lock:
            if (before := self._unanswered.get(command)) is not None:
                self._set(command, replace(before, unfinished=0))

    def count_whole(self, population: str, command: str, sizes: Mapping[str, int]) -> None:
        """Count the bytes of whole blobs of a command, given by address, one of which was stored just now."""
        with self._lock:
            before = self._unanswered.get(command, _Unanswered(population, {}, 0))
            self._set(command, replace(before, whole={**before.whole, **sizes}))

    def count_unfinished(self, command: str) -> None:
        """Count the bytes of a command's unfinished upload, at the end of a request that continued it."""
        try:
            with self._database.transaction() as session:
                row = session.execute(_STATE, {"of": command}).one_or_none()
            if row is None:
                return
            unfinished = _size_of(self._parts_of(command))
        except (OSError, SQLAlchemyError) as error:
            log.warning("received blobs cannot be counted now: %s", _first_line(error))
            return
        with self._lock:
            if row.state in OPEN:
                before = self._unanswered.get(command, _Unanswered(row.population, {}, 0))
                self._set(command, replace(before, unfinished=unfinished))
            elif row.state == "done":
                self._set(command, None)  # its answer's row counts them

    def _count_stored(self, commands: Collection[str]) -> None:
        """Count the bytes that the store and the disk hold for those of `commands` that are open."""
        try:
            for some in batches(list(commands)):
                query = select(*COMMANDS.c["id", "population"]).where(
                    COMMANDS.c.id.in_(some), COMMANDS.c.state.in_(OPEN)
                )
                with self._database.transaction() as session:
                    open = session.execute(query).all()
                for command, population in open:
                    unanswered = _Unanswered(population, self.of(command).sizes(), _size_of(self._parts_of(command)))
                    with self._lock:
                        self._set(command, unanswered)
        except (OSError, StoreError, SQLAlchemyError) as error:
            log.warning("received blobs cannot be counted now: %s", _first_line(error))

    def stop_counting(self, command: str) -> None:
        """Count the bytes received for a command no more: its answer's row counts them, or they are gone."""
        with self._lock:
            self._set(command, None)

    def _set(self, command: str, unanswered: "_Unanswered | None") -> None:
        if (before := self._unanswered.pop(command, None)) is not None:
            self._sums[before.population] -= before.size
        if unanswered is not None and unanswered.size:
            self._unanswered[command] = unanswered
            self._sums[unanswered.population] = self.unanswered_bytes(unanswered.population) + unanswered.size

    def publish(self, population: str, command: str, sha256: str) -> None:
        """Copy a command's blob to the server's own, for its population to claim; raises MissingBlob."""
        try:
            self._blobs.copy_from(self.of(command), sha256)
        except MissingBlob:
            self.ownership.check([population], sha256)

    def remove_soon(self, commands: Iterable[str]) -> None:
        """Remove soon the blobs of those of `commands` that are over and whose updates are not needed.

        The end of a command must be committed before. A failed removal is tried again, at last by the next process.
        """
        with self._lock:
            self._ended.update(commands)
        self._some.set()

    def _work(self) -> None:
        left: set[str] = set()
        while not self._stopped.is_set():
            self._some.wait(RETRY_SECONDS if left else None)
            self._stopped.wait(GATHER_SECONDS)
            self._some.clear()
            with self._lock:
                commands, self._ended = self._ended | left, set()
            try:
                left = self._remove(commands)
            except BaseException:
                with self._lock:
                    self._ended |= commands
                self._some.set()
                raise

    def sweep(self) -> None:
        """Remove what an earlier process left behind, and count the bytes that stay."""
        shutil.rmtree(self._parts / "once", ignore_errors=True)  # uploads of senders that do not resume
        parts = {folder.name for folder in self._parts_of("").glob("*")}
        commands = parts | set(self._blobs.names(FOLDER))
        self._remove(commands)
        self._count_stored(commands)

    def _remove(self, commands: Collection[str]) -> set[str]:
        """Remove the blobs of those of `commands` that are over; returns those whose removal failed."""
        try:
            there = [command for command in commands if self._holds(command)]
            for command in set(commands) - set(there):
                self.stop_counting(command)
            over = set(there) - self._needed(there)
            if over:
                self._database.settle()
        except (OSError, SQLAlchemyError) as error:
            log.warning("the blobs of commands that are over cannot be removed now: %s", _first_line(error))
            return set(commands)
        left, why = set(over), ""
        for command in over:
            try:
                self.of(command).remove_all()
                shutil.rmtree(self._parts_of(command), ignore_errors=True)
                left.remove(command)
                self.stop_counting(command)
            except OSError as error:
                why = _first_line(error)
            except StoreError as error:
                why = _first_line(error)
                break  # the others are in the same store
        if left:
            log.warning("the blobs of %d commands that are over cannot be removed now: %s", len(left), why)
        return left

    def _holds(self, command: str) -> bool:
        return self._parts_of(command).exists() or self.of(command).holds_any()

    def _parts_of(self, command: str) -> Path:
        return self._parts / uploads_folder(command)

    def _needed(self, commands: list[str]) -> set[str]:
        """The commands that may still be answered, or whose updates are not in a checkpoint yet, or are to be kept."""
        states = (*OPEN, "done") if self._keeps else OPEN
        needed: set[str] = set()
        for some in batches(commands):
            with self._database.transaction() as session:
                open = select(COMMANDS.c.id).where(COMMANDS.c.id.in_(some), COMMANDS.c.state.in_(states))
                needed.update(session.scalars(open))
                live = select(ASSIGNMENTS.c.command).where(
                    ASSIGNMENTS.c.command.in_(some), ASSIGNMENTS.c.state.in_(LIVE)
                )
                needed.update(session.scalars(live))
        return needed


@dataclass(frozen=True)
class _Unanswered:
    """The bytes received for an open command of a population: of `whole` blobs by address, and of an unfinished upload."""

    population: str
    whole: Mapping[str, int]
    unfinished: int

    @property
    def size(self) -> int:
        return sum(self.whole.values()) + self.unfinished


def _size_of(folder: Path) -> int:
    size = 0
    for path in folder.glob("*.part"):
        with suppress(FileNotFoundError):  # it was finished or removed meanwhile
            size += path.stat().st_size
    return size


def uploads_folder(command: str) -> str:
    """The folder of a command's unfinished uploads, within the folder of all uploads."""
    return f"commands/{command}"


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
