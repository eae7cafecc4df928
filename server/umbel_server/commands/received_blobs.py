"""What devices sent in answer to commands: blobs apart from the server's own, which go when nobody needs them any more.

Each command has a store of its own. So what came for it is removed without asking who else has the same bytes, and
nothing that a device sends can stand for, or take along, a plan, a checkpoint, a release or an administrator's file.
"""

import logging
import shutil
import threading
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from obstore.exceptions import BaseError as StoreError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from umbel_server.commands.outbox import OPEN
from umbel_server.rounds.assignments import LIVE
from umbel_server.storage.blobs import Blobs
from umbel_server.storage.database import ASSIGNMENTS, COMMANDS, Database, batches
from umbel_server.storage.holdings import Holdings

log = logging.getLogger("umbel.exchange")

FOLDER = "received"
_SOON_SECONDS = 0.2
"""What is over is removed together with what else is over by then: a round does not wait for it."""

_AGAIN_SECONDS = 60.0
"""What could not be removed is tried again after this long, and whenever more is over."""

_STOP_SECONDS = 10.0
"""What is not removed by then is left to the next process: a bucket that does not answer must not hold this one."""


class Received:
    """The blobs of commands beside the server's `blobs`, and their unfinished uploads in the folder `parts`.

    With `keeps_updates` what answered a command stays for good, so that every checkpoint can be computed again.
    `start` sweeps, and begins the thread that tidies; `stop` ends it.
    """

    def __init__(self, database: Database, blobs: Blobs, holdings: Holdings, parts: Path, keeps_updates: bool) -> None:
        self._database, self._blobs, self._parts, self._keeps = database, blobs, parts, keeps_updates
        self.holdings = holdings
        self._ended: set[str] = set()
        self._lying: dict[str, _Lying] = {}
        self._sums: dict[str, int] = {}
        self._lock, self._stopped, self._some = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="tidying", daemon=True)

    def start(self) -> None:
        """Remove what a process before this one left behind, and from then on what is named to `tidy`."""
        self.sweep()
        self._thread.start()

    def stop(self) -> None:
        """Remove what is over, as far as that is soon done, and end the thread."""
        self._stopped.set()
        self._some.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def of(self, command: str) -> Blobs:
        """The store of one command."""
        return self._blobs.apart(f"{FOLDER}/{command}")

    def find(self, population: str, command: str, sha256: str) -> Blobs:
        """Where a blob that answers a command is: in the command's store, or else among those of its population.

        Raises MissingBlob.
        """
        own = self.of(command)
        if own.has(sha256):
            return own
        self.holdings.check([population], sha256)
        return self._blobs

    def lying(self, population: str) -> int:
        """The bytes that came for a population's open commands, answered by none of them yet."""
        return self._sums.get(population, 0)

    def comes(self, command: str) -> None:
        """Count nothing of a command's unfinished upload while it goes on: who takes it in counts that."""
        with self._lock:
            if (before := self._lying.get(command)) is not None:
                self._set(command, replace(before, unfinished=0))

    def weigh(self, *commands: str) -> None:
        """Count what lies here for those of `commands` that are open."""
        try:
            for some in batches(list(commands)):
                query = select(*COMMANDS.c["id", "population"]).where(
                    COMMANDS.c.id.in_(some), COMMANDS.c.state.in_(OPEN)
                )
                with self._database.transaction() as session:
                    open = session.execute(query).all()
                for command, population in open:
                    whole = sum(self.of(command).sizes().values())
                    lying = _Lying(population, whole, _size_of(self._parts_of(command)))
                    with self._lock:
                        self._set(command, lying)
        except (OSError, StoreError, SQLAlchemyError) as error:
            log.warning("what came for commands cannot be counted now: %s", _first_line(error))

    def answered(self, command: str) -> None:
        """Count what lies here for a command no more: what became of it counts from now on."""
        with self._lock:
            self._set(command, None)

    def _set(self, command: str, lying: "_Lying | None") -> None:
        if (before := self._lying.pop(command, None)) is not None:
            self._sums[before.population] -= before.size
        if lying is not None and lying.size:
            self._lying[command] = lying
            self._sums[lying.population] = self.lying(lying.population) + lying.size

    def publish(self, population: str, command: str, sha256: str) -> None:
        """Put what answered a command among the server's own blobs, for the population to claim; raises MissingBlob."""
        if (found := self.find(population, command, sha256)) is not self._blobs:
            self._blobs.copy_from(found, sha256)

    def tidy(self, commands: Iterable[str]) -> None:
        """Remove soon what came for those of `commands` that are over and whose updates nobody needs.

        That they are must be committed already. What cannot be removed is tried again, at last by the next process.
        """
        with self._lock:
            self._ended.update(commands)
        self._some.set()

    def _work(self) -> None:
        left: set[str] = set()
        while not self._stopped.is_set():
            self._some.wait(_AGAIN_SECONDS if left else None)
            self._stopped.wait(_SOON_SECONDS)
            self._some.clear()
            with self._lock:
                commands, self._ended = self._ended | left, set()
            left = self._remove(commands)

    def sweep(self) -> None:
        """Remove what a process before this one left behind, and count what stays."""
        shutil.rmtree(self._parts / "once", ignore_errors=True)  # of those who send it all again
        parts = {folder.name for folder in self._parts_of("").glob("*")}
        commands = parts | set(self._blobs.names(FOLDER))
        self._remove(commands)
        self.weigh(*commands)

    def _remove(self, commands: Collection[str]) -> set[str]:
        """Remove what came for those of `commands` that are over; returns those for which that cannot be done now."""
        try:
            there = [command for command in commands if self._holds(command)]
            for command in set(commands) - set(there):
                self.answered(command)
            over = set(there) - self._needed(there)
            if over:
                self._database.settle()
        except (OSError, SQLAlchemyError) as error:
            log.warning("what came for commands that are over cannot be removed now: %s", _first_line(error))
            return set(commands)
        left, why = set(over), ""
        for command in over:
            try:
                self.of(command).remove_all()
                shutil.rmtree(self._parts_of(command), ignore_errors=True)
                left.remove(command)
                self.answered(command)
            except OSError as error:
                why = _first_line(error)
            except StoreError as error:
                why = _first_line(error)
                break  # the others are in the same store
        if left:
            log.warning("what came for %d commands that are over cannot be removed now: %s", len(left), why)
        return left

    def _holds(self, command: str) -> bool:
        return self._parts_of(command).exists() or self.of(command).holds_any()

    def _parts_of(self, command: str) -> Path:
        return self._parts / sender_of(command)

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
class _Lying:
    """What lies here for a command: its population, bytes of whole blobs, and of an unfinished upload."""

    population: str
    whole: int
    unfinished: int

    @property
    def size(self) -> int:
        return self.whole + self.unfinished


def _size_of(folder: Path) -> int:
    size = 0
    for path in folder.glob("*.part"):
        with suppress(FileNotFoundError):  # it was finished or removed meanwhile
            size += path.stat().st_size
    return size


def sender_of(command: str) -> str:
    """The folder of a command's unfinished uploads."""
    return f"commands/{command}"


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
