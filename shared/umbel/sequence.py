"""Sequence numbers: each message of a sender has a larger one than the message before."""

import threading
from collections.abc import Callable


class Ascending:
    """Microseconds of the sender's `clock`, or one more than before: so they ascend over restarts, too. For any thread.

    `last` is a number known to have been given by an earlier process.
    """

    def __init__(self, clock: Callable[[], float], last: int = 0) -> None:
        self._clock, self._last = clock, last
        self._lock = threading.Lock()

    def next(self) -> int:
        """The next number."""
        with self._lock:
            self._last = max(self._last + 1, int(self._clock() * 1e6))
            return self._last
