"""The bytes of blobs that each population moved over HTTP today, by UTC day.

Bytes are counted in memory and written to the database every FLUSH_SECONDS and at the end. A server that is killed loses
the count of the last FLUSH_SECONDS at most.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from umbel.errors import UmbelError
from umbel.loops import Loop
from umbel_server.storage.database import Database, Traffic

log = logging.getLogger("umbel.server")

DAY_SECONDS = 86_400
FLUSH_SECONDS = 2.0

Direction = Literal["down", "up"]


class QuotaReached(UmbelError):
    """The request would exceed the population's quota; `status` is the HTTP status, `retry_after` seconds or 0."""

    def __init__(self, sentence: str, status: int, retry_after: float = 0.0) -> None:
        super().__init__(sentence)
        self.status, self.retry_after = status, retry_after


@dataclass
class _Bytes:
    down: int = 0
    up: int = 0

    def add(self, down: int, up: int) -> None:
        self.down, self.up = self.down + down, self.up + up


@dataclass
class _Today(_Bytes):
    day: int = 0
    promised: int = 0
    """Bytes reserved for transfers in progress that have not moved yet."""


class Moving:
    """One transfer; `promised` are the bytes reserved for it that have not moved yet."""

    def __init__(self, count: Callable[[int, int], None], promised: int) -> None:
        self._count, self.promised = count, promised

    def moved(self, size: int) -> None:
        """Count `size` bytes as moved."""
        kept = min(size, self.promised)
        self.promised -= kept
        self._count(size, kept)


class DailyBytes:
    """Today's bytes of every population. `start` begins the thread that writes them to the database, `stop` ends it."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._unwritten: dict[tuple[str, int], _Bytes] = {}
        self._thread = Loop("traffic", self._work, self._stopped, log)
        with database.transaction() as session:
            rows = session.scalars(select(Traffic).where(Traffic.day == self._day())).all()
        self._of = {row.population: _Today(row.down, row.up, row.day) for row in rows}

    def start(self) -> None:
        """Begin to write the counts to the database every FLUSH_SECONDS."""
        self._thread.start()

    def stop(self) -> None:
        """Write the counts a last time, and end the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._flush_if_it_can_be()

    @contextmanager
    def moving(self, population: str, direction: Direction, size: int, most: int | None) -> Iterator[Moving]:
        """Reserve `size` bytes for one transfer; bytes that have not moved at its end are released.

        Raises QuotaReached before the transfer when fewer bytes are left of `most` a day. Reservations count as used, so
        that concurrent transfers together cannot exceed the quota.
        """
        with self._lock:
            self._check(population, size, most)
            self._today(population).promised += size

        def count(moved: int, kept: int) -> None:
            self._count(population, direction, moved, kept)

        transfer = Moving(count, size)
        try:
            yield transfer
        finally:
            count(0, transfer.promised)

    def check(self, population: str, size: int, most: int | None) -> None:
        """Raise QuotaReached when fewer than `size` bytes are left of `most` today."""
        with self._lock:
            self._check(population, size, most)

    def _check(self, population: str, size: int, most: int | None) -> None:
        if most is None:
            return
        today = self._today(population)
        used = today.down + today.up
        if used + today.promised + size > most:
            raise QuotaReached(
                f"population {population} may move {most:,} bytes a day, today {used:,} have moved and "
                f"{size + today.promised:,} more were to; it goes on after midnight UTC, or when an owner of this server "
                "allows more ('umbel quota set')",
                429,
                DAY_SECONDS - self._clock() % DAY_SECONDS,
            )

    def _count(self, population: str, direction: Direction, moved: int, kept: int) -> None:
        down, up = (moved, 0) if direction == "down" else (0, moved)
        with self._lock:
            today = self._today(population)
            today.promised -= kept
            if moved:
                today.add(down, up)
                self._unwritten.setdefault((population, today.day), _Bytes()).add(down, up)

    def today(self, population: str) -> tuple[int, int]:
        """Bytes downloaded and uploaded today, in that order."""
        with self._lock:
            today = self._today(population)
            return today.down, today.up

    def reserved(self, population: str) -> int:
        """Bytes reserved for the population's transfers in progress that have not moved yet."""
        with self._lock:
            return self._today(population).promised

    def _day(self) -> int:
        return math.floor(self._clock() / DAY_SECONDS)

    def _today(self, population: str) -> _Today:
        today, day = self._of.setdefault(population, _Today(day=self._day())), self._day()
        if today.day != day:
            today.day, today.down, today.up = day, 0, 0
        return today

    def flush(self) -> None:
        """Write the counts since the last flush to the database; on an error they are kept for the next flush."""
        with self._lock:
            moved, self._unwritten = self._unwritten, {}
        if not moved:
            return
        try:
            with self._database.transaction() as session:
                for (population, day), some in moved.items():
                    row = session.get(Traffic, (population, day), with_for_update=True)
                    if row is None:
                        session.add(row := Traffic(population=population, day=day, down=0, up=0))
                    row.down, row.up = row.down + some.down, row.up + some.up
        except SQLAlchemyError:
            with self._lock:
                for name, some in moved.items():
                    self._unwritten.setdefault(name, _Bytes()).add(some.down, some.up)
            raise

    def _work(self) -> None:
        while not self._stopped.wait(FLUSH_SECONDS):
            self._flush_if_it_can_be()

    def _flush_if_it_can_be(self) -> None:
        try:
            self.flush()
        except SQLAlchemyError as error:
            log.warning("the bytes that moved today cannot be written down now: %s", str(error).splitlines()[0])
