"""Counts of refused requests and messages by sender and kind; the log says each at most once a minute."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger("umbel.refused")

QUIET_SECONDS = 60.0
MOST_KEYS = 16_384
"""The largest number of senders that are counted; beyond it the one refused longest ago is forgotten."""


@dataclass
class _Count:
    times: dict[str, int] = field(default_factory=dict)
    said: dict[str, tuple[float, int]] = field(default_factory=dict)


class Refusals:
    """Counts since the start of the server, by device (`population/device`), population, or network address."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, _Count] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, who: str, what: str, why: str) -> None:
        """Count one refusal of the kind `what`, and log it unless that was done less than QUIET_SECONDS ago."""
        now = self._clock()
        with self._lock:
            count = self._counts.setdefault(who, _Count())
            self._counts.move_to_end(who)
            if len(self._counts) > MOST_KEYS:
                self._counts.popitem(last=False)
            times = count.times[what] = count.times.get(what, 0) + 1
            at, before = count.said.get(what, (float("-inf"), 0))
            if now - at < QUIET_SECONDS:
                return
            count.said[what] = now, times
        more = f" ({times - before} since the last such line)" if before else ""
        log.warning("refused %s of %s: %s%s", what, who, why, more)

    def of(self, who: str) -> dict[str, int]:
        """The number of refusals of a sender, by kind."""
        with self._lock:
            count = self._counts.get(who)
            return dict(count.times) if count is not None else {}
