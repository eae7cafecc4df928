"""Sequence numbers: each message of a sender has a larger one than the message before."""

import threading
from collections.abc import Callable


class Ascending:
    """Gives numbers that always grow: microseconds of the sender's `clock`, or the last number plus one if that is more.

    So they grow across restarts too. `last` is the highest number known from an earlier process. Any thread may call it.
    """

    def __init__(self, clock: Callable[[], float], last: int = 0) -> None:
        self._clock, self._last = clock, last
        self._lock = threading.Lock()

    def next(self) -> int:
        """A number larger than every one before."""
        with self._lock:
            self._last = max(self._last + 1, int(self._clock() * 1e6))
            return self._last
