"""Tokens of requests that change something: each is good once."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable

from umbel.enrolment import TOKEN_SECONDS, Access

MOST = 1 << 18
"""Tokens that are remembered; of more at once the oldest are forgotten, and none from before them is taken any more."""


class UsedTokens:
    """The tokens that were used lately, and since when there is a record of them: tokens from before are not taken."""

    def __init__(self, clock: Callable[[], float], most: int = MOST) -> None:
        self._clock, self._most, self.since = clock, most, clock()
        self._used: OrderedDict[tuple[str, str, str], tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def use(self, access: Access) -> bool:
        """Note the use of a token that is not too old; returns False when it was used before."""
        now, name = self._clock(), (access.population, access.device, access.nonce)
        with self._lock:
            while self._used and (next(iter(self._used.values()))[0] < now or len(self._used) > self._most):
                _, (until, at) = self._used.popitem(last=False)
                if until >= now:  # forgotten early: there is a record of what was signed later, and of no more
                    self.since = max(self.since, math.nextafter(at, math.inf))
            if name in self._used or access.at < self.since:
                return False
            # Its time may be as far ahead of ours as it may be behind.
            self._used[name] = now + 2 * TOKEN_SECONDS, access.at
            return True
