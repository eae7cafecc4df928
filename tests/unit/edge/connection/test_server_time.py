"""The server's time on a device whose own clock is wrong."""

import pytest

from umbel.enrolment import CLOCK_TOLERANCE
from umbel.sequence import Ascending
from umbel_edge.connection.server_time import DAY, ServerTime


class Clocks:
    """A wall clock that can be set, and a steady clock that cannot."""

    def __init__(self) -> None:
        self.wall, self.steady = 5_000.0, 10.0

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def time(clocks: Clocks) -> ServerTime:
    return ServerTime(lambda: clocks.wall, lambda: clocks.steady)


def test_until_the_server_was_heard_the_own_clock_counts(clocks: Clocks, time: ServerTime) -> None:
    clocks.pass_(7)
    assert (time(), time.skew, time.wrong) == (5_007.0, 0.0, "")


def test_the_servers_time_goes_on_whatever_is_done_to_the_own_clock(clocks: Clocks, time: ServerTime) -> None:
    time.hear(1_000_000.0)
    clocks.pass_(60)
    clocks.wall = -3.0
    assert time() == 1_000_060.0
    clocks.wall = 1_000_000.0 + 60 + CLOCK_TOLERANCE
    assert (time(), time.wrong) == (1_000_060.0, "")


@pytest.mark.parametrize(
    ("off", "way"), [(3600.0, "3600 s ahead of"), (-3600.0, "3600 s behind"), (301, "301 s ahead")]
)
def test_beyond_the_bound_the_clock_is_wrong_in_words(clocks: Clocks, time: ServerTime, off: float, way: str) -> None:
    time.hear(clocks.wall)
    clocks.wall += off
    assert way in time.wrong
    assert "300 s are tolerated" in time.wrong
    clocks.wall -= off
    assert time.wrong == ""


def test_what_the_server_signs_is_never_from_the_future(clocks: Clocks, time: ServerTime) -> None:
    time.hear(1_000.0)
    time.at_least(900.0)
    assert time() == 1_000.0
    time.at_least(2_000.0)
    clocks.pass_(1)
    assert time() == 2_001.0


def test_days_are_counted_by_the_clock_that_nobody_sets(clocks: Clocks, time: ServerTime) -> None:
    before = time.since_start(DAY)
    clocks.wall += 10 * DAY
    assert time.since_start(DAY) == before
    clocks.pass_(DAY)
    assert time.since_start(DAY) == before + 1


def test_numbers_ascend_also_when_the_clock_goes_back_or_the_process_is_another(clocks: Clocks) -> None:
    numbers = Ascending(lambda: clocks.wall)
    first, second = numbers.next(), numbers.next()
    clocks.wall = 0.0
    third = numbers.next()
    assert first < second < third
    assert Ascending(lambda: clocks.wall, last=third).next() > third
