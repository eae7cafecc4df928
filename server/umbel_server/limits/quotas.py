"""Quotas: the devices, stored bytes and bytes a day that a population may use. Without a quota there is no limit."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from umbel.errors import UmbelError
from umbel.topics import check_name
from umbel_server import answers
from umbel_server.devices.register import DELETED
from umbel_server.limits.daily_bytes import DailyBytes, Direction, Moving, QuotaReached
from umbel_server.limits.refusals import Refusals
from umbel_server.storage.blob_ownership import BlobOwnership
from umbel_server.storage.database import Assignment, BlobPopulation, Database, Device, Quota, Run

LOOK_SECONDS = 1.0
"""How long a sum of stored bytes is used again while no blob is added to the population."""
MOST = 2**62


class QuotaChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits to set: a number, or None for no limit. Limits that are not named stay as they are."""

    devices: int | None | msgspec.UnsetType = msgspec.UNSET
    storage: int | None | msgspec.UnsetType = msgspec.UNSET
    bytes_per_day: int | None | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True)
class Limit:
    """The limits of one population; None means no limit. Sizes in bytes."""

    devices: int | None = None
    storage: int | None = None
    bytes_per_day: int | None = None


NO_LIMIT = Limit()


class Quotas:
    """The quotas in the database and in memory; a change holds from the next request on.

    Stored bytes are the blobs that belong to the population (the same bytes in two populations count in both), updates
    that wait to be folded, uploads in progress, and received blobs that no result names yet (`unanswered`). With
    `keeps_updates` folded updates are kept, and count too.
    """

    def __init__(
        self,
        database: Database,
        ownership: BlobOwnership,
        traffic: DailyBytes,
        refusals: Refusals,
        clock: Callable[[], float],
        keeps_updates: bool,
        unanswered: Callable[[str], int] = lambda population: 0,
    ) -> None:
        self._database, self._ownership, self._refusals, self._clock = database, ownership, refusals, clock
        self._traffic, self._unanswered = traffic, unanswered
        self._waiting = ("uploaded", "folded") if keeps_updates else ("uploaded",)
        self._lock = threading.Lock()
        self._coming: dict[str, int] = {}
        self._stored: dict[str, tuple[float, int, int]] = {}
        with database.transaction() as session:
            rows = session.scalars(select(Quota)).all()
        self._limits = {row.population: Limit(row.devices, row.storage, row.bytes_per_day) for row in rows}

    def limit(self, population: str) -> Limit:
        """The limits of a population."""
        return self._limits.get(population, NO_LIMIT)

    def set(self, population: str, change: QuotaChange) -> Limit:
        """Change limits of a population, which need not exist yet; raises UmbelError when a limit is out of range."""
        check_name(population, "a population")
        wanted = {
            name: value
            for name in ("devices", "storage", "bytes_per_day")
            if (value := getattr(change, name)) is not msgspec.UNSET
        }
        for name, value in wanted.items():
            if value is not None and not 0 <= value <= MOST:
                raise UmbelError(f"a quota is 0 to 2^62, or none; got {value} for {name}")
        with self._database.transaction() as session:
            row = session.get(Quota, population, with_for_update=True)
            if row is None:
                session.add(row := Quota(population=population, devices=None, storage=None, bytes_per_day=None))
            for name, value in wanted.items():
                setattr(row, name, value)
            limit = Limit(row.devices, row.storage, row.bytes_per_day)
        self._limits[population] = limit
        return limit

    def check_devices(self, session: Session, population: str) -> None:
        """Raise QuotaReached, within the caller's transaction, when the population may have no further device."""
        most = self.limit(population).devices
        if most is None:
            return
        session.get(Quota, population, with_for_update=True)  # concurrent enrolments take turns
        count = session.scalar(select(func.count()).where(*_enrolled(population))) or 0
        if count >= most:
            raise self._reached(
                population,
                "devices",
                f"population {population} has {count} devices, its quota is {most}; the token stays good: ask an owner of "
                "this server for more ('umbel quota set'), or have a device deleted",
                403,
            )

    def check_storage(self, population: str, size: int) -> None:
        """Raise QuotaReached when the population may not store `size` bytes more."""
        most = self.limit(population).storage
        if most is None:
            return
        stored = self.stored(population)
        if stored + size > most:
            raise self._reached(
                population,
                "storage",
                f"population {population} stores {_text(stored)}, its quota is {_text(most)} and {_text(size)} more were "
                "to come; ask an owner of this server for more ('umbel quota set')",
                413,
            )

    @contextmanager
    def storing(self, population: str, size: int) -> Iterator[None]:
        """Count `size` bytes as stored while they arrive; raises QuotaReached before when they exceed the quota."""
        self._expect(population, size)
        try:
            self.check_storage(population, 0)
            yield
        finally:
            self._expect(population, -size)

    def _expect(self, population: str, size: int) -> None:
        with self._lock:
            self._coming[population] = self._coming.get(population, 0) + size

    @contextmanager
    def moving(self, population: str, direction: Direction, size: int) -> Iterator[Moving]:
        """A transfer of `size` bytes over HTTP; raises QuotaReached before when they exceed today's quota."""
        with (
            self._daily(population),
            self._traffic.moving(population, direction, size, self.limit(population).bytes_per_day) as transfer,
        ):
            yield transfer

    @contextmanager
    def _daily(self, population: str) -> Iterator[None]:
        try:
            yield
        except QuotaReached as error:
            self._refusals.note(population, "bytes (quota)", str(error))
            raise

    def stored(self, population: str) -> int:
        """The bytes that a population stores."""
        # Read in the order in which bytes pass from one count to the next, so that bytes in motion count at least once.
        on_the_way = self._coming.get(population, 0) + self._unanswered(population) + self._unfolded(population)
        return on_the_way + self._held(population)

    def _held(self, population: str) -> int:
        now, changes = self._clock(), self._ownership.changes
        at, of, size = self._stored.get(population, (float("-inf"), -1, 0))
        if of != changes or not 0 <= now - at < LOOK_SECONDS:
            with self._database.transaction() as session:
                size = int(
                    session.scalar(select(func.sum(BlobPopulation.size)).where(BlobPopulation.population == population))
                    or 0
                )
            self._stored[population] = now, changes, size
        return size

    def _unfolded(self, population: str) -> int:
        query = select(func.sum(Assignment.bytes_up)).where(
            Assignment.population == population, Assignment.state.in_(self._waiting)
        )
        with self._database.transaction() as session:
            return int(session.scalar(query) or 0)

    def check_round(self, population: str, stored: int, moved: int) -> None:
        """Raise QuotaReached when the quota has no room for a round, which stores `stored` and moves `moved` bytes at least."""
        self.check_storage(population, stored)
        with self._daily(population):
            self._traffic.check(population, moved, self.limit(population).bytes_per_day)

    def _reached(self, population: str, what: str, sentence: str, status: int) -> QuotaReached:
        self._refusals.note(population, f"{what} (quota)", sentence)
        return QuotaReached(sentence, status)

    def populations(self) -> list[str]:
        """Every population that has a device, a run, a blob or a quota, by name."""
        names: set[str] = set(self._limits)
        with self._database.transaction() as session:
            for column in (Device.population, Run.population, BlobPopulation.population):
                names.update(session.scalars(select(column).distinct()))
        return sorted(names)

    def describe(self, population: str) -> answers.Quota:
        """A population's quotas and their use, as the API shows them; None means no limit."""
        limit = self.limit(population)
        with self._database.transaction() as session:
            count = session.scalar(select(func.count()).where(*_enrolled(population))) or 0
        down, up = self._traffic.today(population)
        return answers.Quota(
            population=population,
            devices=count,
            devices_limit=limit.devices,
            storage=self.stored(population),
            storage_limit=limit.storage,
            bytes_down_today=down,
            bytes_up_today=up,
            bytes_per_day_limit=limit.bytes_per_day,
            refused=self._refusals.of(population),
        )


def _enrolled(population: str) -> tuple[Any, ...]:
    return Device.population == population, Device.state != DELETED


def _text(size: int) -> str:
    return f"{size:,} bytes"
