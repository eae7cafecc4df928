"""The server's time as the device knows it, so that deadlines do not depend on the device's own clock."""

import time
from collections.abc import Callable

from umbel.skew import is_wrong, sentence

LOOK_SECONDS = 3600.0
DAY = 86_400.0


def steady() -> float:
    """Seconds of a clock that nobody can set; it includes the time that the device sleeps where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class ServerTime:
    """The server's last stated time plus the seconds since, by a `steady` clock; before the first, the device's `clock`.

    Safe to use from several threads.
    """

    def __init__(self, clock: Callable[[], float], steady: Callable[[], float] = steady) -> None:
        self._clock, self._steady = clock, steady
        self._heard: tuple[float, float] | None = None

    def hear(self, at: float) -> None:
        """Take in that the server's time is `at` (Unix seconds) now."""
        self._heard = at, self._steady()

    def at_least(self, at: float) -> None:
        """Take in that the server signed something at `at`, so its time is not before that."""
        if at > self():
            self.hear(at)

    def __call__(self) -> float:
        """The server's time in Unix seconds."""
        if (heard := self._heard) is None:
            return self._clock()
        return heard[0] + self._steady() - heard[1]

    @property
    def skew(self) -> float:
        """Seconds by which the device's clock is ahead of the server's."""
        return self._clock() - self()

    @property
    def wrong(self) -> str:
        """A sentence that says how wrong the device's clock is; empty while the skew is tolerated."""
        return f"the device's clock is {sentence(self.skew)}" if is_wrong(self.skew) else ""

    def since_start(self, seconds: float) -> int:
        """The number of the current period of `seconds` seconds; it changes at each new period."""
        return int(self._steady() // seconds)
