"""A rate limit by token bucket: a burst of uses at once, then one use every so many seconds."""

import threading
from collections import OrderedDict
from collections.abc import Callable

MOST_KEYS = 4096
"""The largest number of keys that are remembered; beyond it the least recently used key starts again with a full bucket."""


class RateLimit:
    """A token bucket for each key: it holds `burst` uses, and gains one every `seconds`."""

    def __init__(self, burst: float, seconds: float, clock: Callable[[], float], most_keys: int = MOST_KEYS) -> None:
        self._burst, self._seconds, self._clock, self._most = float(burst), seconds, clock, most_keys
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, key: str) -> float:
        """Seconds until `key` may be used; 0 when it may be now."""
        with self._lock:
            left = self._now(key)
        return 0.0 if left >= 1 else (1 - left) * self._seconds

    def is_full(self, key: str) -> bool:
        """Whether all uses of `key` are left, because it was not used recently."""
        with self._lock:
            return self._now(key) >= self._burst

    def use(self, key: str) -> bool:
        """Take one use of `key` if one is left; returns whether it was."""
        with self._lock:
            left = self._now(key)
            may = left >= 1
            self._left[key] = (
                left - may,
                self._clock(),
            )  # written also when no use is left, so that a clock that was set back locks nobody out
            self._left.move_to_end(key)
            if len(self._left) > self._most:
                self._left.popitem(last=False)
            return may

    def _now(self, key: str) -> float:
        left, at = self._left.get(key, (self._burst, self._clock()))
        return min(self._burst, left + max(0.0, self._clock() - at) / self._seconds)
