"""What a population may use: by the day, in all, however many ask at once and whatever breaks off."""

import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.empty_database import empty_database
from umbel.errors import UmbelError
from umbel.messages import Blob
from umbel_server.limits.daily_bytes import DAY_SECONDS, DailyBytes, Direction, QuotaReached
from umbel_server.limits.quotas import QuotaChange, Quotas
from umbel_server.limits.refusals import Refusals
from umbel_server.storage.blob_ownership import BlobOwnership
from umbel_server.storage.blobs import Blobs
from umbel_server.storage.database import Database

NOON = 20_000.5 * DAY_SECONDS


class Clock:
    now = NOON

    def __call__(self) -> float:
        return self.now


class Books:
    """What a server keeps of quotas, in a database at `path`."""

    def __init__(self, path: Path) -> None:
        self.clock, self.database = Clock(), Database(empty_database(path))
        self.blobs = Blobs((path.parent / "blobs").as_uri())
        self.open()

    def open(self) -> None:
        """Begin anew with what is in the database."""
        self.ownership = BlobOwnership(self.database, self.blobs, self.clock)
        self.daily = DailyBytes(self.database, self.clock)
        self.quotas = Quotas(self.database, self.ownership, self.daily, Refusals(self.clock), self.clock, False)


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path / "quotas.sqlite")


transfers = st.lists(
    st.tuples(st.sampled_from(["down", "up"]), st.integers(0, 500), st.integers(0, 500), st.booleans()), max_size=40
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(most=st.integers(0, 2000), transfers=transfers)
def test_transfers_under_way_never_move_more_than_a_days_bytes(
    books: Books, most: int, transfers: list[tuple[Direction, int, int, bool]]
) -> None:
    """Of each transfer some of its bytes move; it ends at once, or stays under way while others come."""
    books.clock.now += DAY_SECONDS  # each example has a day of its own
    moved = 0
    with ExitStack() as under_way:
        for direction, size, comes, ends in transfers:
            promised_before = books.daily.reserved("p")
            transfer = ExitStack()
            asked = books.daily.moving("p", direction, size, most)
            if moved + promised_before + size > most:
                with pytest.raises(QuotaReached) as refused:
                    transfer.enter_context(asked)
                assert (refused.value.status, refused.value.retry_after) == (429, DAY_SECONDS / 2)
                continue
            moving = transfer.enter_context(asked)
            moving.moved(min(comes, size))
            moved += min(comes, size)
            assert moved <= most
            if ends:
                transfer.close()
            else:
                under_way.enter_context(transfer)
    assert books.daily.reserved("p") == 0
    assert sum(books.daily.today("p")) == moved
    books.daily.flush()
    books.open()
    assert sum(books.daily.today("p")) == moved


def test_a_new_day_begins_at_midnight_utc(books: Books) -> None:
    with books.daily.moving("p", "up", 100, 100) as moving:
        moving.moved(40)
        books.clock.now += DAY_SECONDS / 2
        moving.moved(60)
        assert books.daily.today("p") == (0, 60)
        with pytest.raises(QuotaReached, match="may move 100 bytes a day, today 60 have moved"):
            books.daily.check("p", 41, 100)
        books.daily.check("p", 40, 100)
    books.daily.flush()
    books.clock.now -= DAY_SECONDS / 2
    books.open()
    assert books.daily.today("p") == (0, 40)


def test_what_cannot_be_written_down_is_the_next_time(books: Books) -> None:
    with books.daily.moving("p", "down", 10, None) as moving:
        moving.moved(10)
    with books.database.transaction() as session:
        session.connection().exec_driver_sql("ALTER TABLE traffic RENAME TO away")
    books.daily.stop()
    with books.database.transaction() as session:
        session.connection().exec_driver_sql("ALTER TABLE away RENAME TO traffic")
    books.daily.flush()
    books.open()
    assert books.daily.today("p") == (10, 0)


def test_many_who_store_at_once_never_store_more_than_the_quota(books: Books) -> None:
    books.quotas.set("p", QuotaChange(storage=1000))
    begin, most = threading.Barrier(8), []

    def store(number: int) -> None:
        begin.wait()
        for piece in range(20):
            with suppress(QuotaReached), books.quotas.storing("p", 30):
                most.append(books.quotas.stored("p"))
                with books.database.transaction() as session:
                    books.ownership.claim(session, "p", Blob(f"{number:02}{piece:062}", 30))

    threads = [threading.Thread(target=store, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stored = books.quotas.describe("p").storage
    assert 0 < stored <= 1000
    with pytest.raises(QuotaReached, match="its quota is 1,000 bytes") as refused:
        books.quotas.check_storage("p", 1001 - stored)
    assert refused.value.status == 413
    books.quotas.check_storage("p", 1000 - stored)
    books.quotas.check_storage("another", 10**15)


def test_a_quota_is_changed_in_part_taken_away_and_kept(books: Books) -> None:
    books.quotas.set("p", QuotaChange(devices=5, storage=10))
    books.quotas.set("p", QuotaChange(storage=None, bytes_per_day=7))
    books.open()
    shown = books.quotas.describe("p")
    assert (shown.devices_limit, shown.storage_limit, shown.bytes_per_day_limit) == (5, None, 7)
    assert books.quotas.populations() == ["p"]


def test_a_round_that_could_not_move_its_bytes_today_does_not_begin(books: Books) -> None:
    books.quotas.set("p", QuotaChange(bytes_per_day=1000, storage=500))
    with books.daily.moving("p", "down", 400, None) as moving:
        moving.moved(400)
    books.quotas.check_round("p", 500, 600)
    with pytest.raises(QuotaReached, match="today 400 have moved and 601 more were to"):
        books.quotas.check_round("p", 500, 601)
    with pytest.raises(QuotaReached, match="its quota is 500 bytes"):
        books.quotas.check_round("p", 501, 0)
    assert books.quotas.describe("p").refused == {"bytes (quota)": 1, "storage (quota)": 1}


@pytest.mark.parametrize("wrong", [{"devices": -1}, {"storage": 2**63}])
def test_a_quota_that_makes_no_sense_is_refused(books: Books, wrong: dict[str, Any]) -> None:
    with pytest.raises(UmbelError, match="a quota is 0 to"):
        books.quotas.set("p", QuotaChange(**wrong))
    with pytest.raises(UmbelError, match="a population should be"):
        books.quotas.set("a/b", QuotaChange(devices=1))
    assert books.quotas.limit("p").devices is None
