"""The tokens of requests that change something: each may be used once."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable

from umbel.enrolment import TOKEN_SECONDS, Access

MOST = 1 << 18
"""The largest number of tokens that are remembered. Beyond it the oldest is forgotten, and tokens as old are refused."""


class UsedTokens:
    """The recently used tokens. The record is complete from `since` on; a token signed before that is refused."""

    def __init__(self, clock: Callable[[], float], most: int = MOST) -> None:
        self._clock, self._most, self.since = clock, most, clock()
        self._used: OrderedDict[tuple[str, str, str], tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def use(self, access: Access) -> bool:
        """Record the use of a token; returns False when it was used before, or is older than the record."""
        now, name = self._clock(), (access.population, access.device, access.nonce)
        with self._lock:
            while self._used and (next(iter(self._used.values()))[0] < now or len(self._used) > self._most):
                _, (until, at) = self._used.popitem(last=False)
                if until >= now:  # forgotten early: the record is complete only for tokens signed later
                    self.since = max(self.since, math.nextafter(at, math.inf))
            if name in self._used or access.at < self.since:
                return False
            # The sender's clock may be as far ahead of ours as it may be behind.
            self._used[name] = now + 2 * TOKEN_SECONDS, access.at
            return True
