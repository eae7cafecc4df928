"""Tokens of requests that change something: each is good once."""

import threading
from collections import OrderedDict
from collections.abc import Callable

from umbel.enrolment import TOKEN_SECONDS, Access

MOST = 1 << 18
"""Tokens that are remembered; of more at once the oldest are forgotten."""


class UsedTokens:
    """The tokens that were used lately, and since when there is a record of them: tokens from before are not taken."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self.since = clock, clock()
        self._used: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self._lock = threading.Lock()

    def use(self, access: Access) -> bool:
        """Note the use of a token that is not too old; returns False when it was used before."""
        now, name = self._clock(), (access.population, access.device, access.nonce)
        with self._lock:
            while self._used and (next(iter(self._used.values())) < now or len(self._used) > MOST):
                self._used.popitem(last=False)
            if name in self._used:
                return False
            self._used[name] = now + 2 * TOKEN_SECONDS  # its time may be as far ahead of ours as it may be behind
            return True
