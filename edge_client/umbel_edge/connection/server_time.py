"""The server's time as a device knows it: what it does by the server's word does not depend on its own clock being right."""

import time
from collections.abc import Callable

from umbel.skew import is_wrong, sentence

LOOK_SECONDS = 3600.0
DAY = 86_400.0


def steady() -> float:
    """Seconds by a clock that nobody sets, and that goes on while the device sleeps where the system has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class ServerTime:
    """What the server last said, and what has passed since by a `steady` clock; before it said anything, the device's `clock`.

    For any thread: what was heard is replaced as a whole.
    """

    def __init__(self, clock: Callable[[], float], steady: Callable[[], float] = steady) -> None:
        self._clock, self._steady = clock, steady
        self._heard: tuple[float, float] | None = None

    def hear(self, at: float) -> None:
        """The server says that it is `at` (Unix seconds)."""
        self._heard = at, self._steady()

    def at_least(self, at: float) -> None:
        """The server has signed something when it was `at`."""
        if at > self():
            self.hear(at)

    def __call__(self) -> float:
        """Unix seconds."""
        if (heard := self._heard) is None:
            return self._clock()
        return heard[0] + self._steady() - heard[1]

    @property
    def skew(self) -> float:
        """By how many seconds the device's clock is ahead."""
        return self._clock() - self()

    @property
    def wrong(self) -> str:
        """What is wrong with the device's clock, in words; empty while that is tolerated."""
        return f"the device's clock is {sentence(self.skew)}" if is_wrong(self.skew) else ""

    def since_start(self, seconds: float) -> int:
        """A number that is another one every so many seconds."""
        return int(self._steady() // seconds)
