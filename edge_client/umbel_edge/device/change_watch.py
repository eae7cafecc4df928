"""Noticing that something has changed, often enough and not too often."""

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger("umbel.agent")

FIRST_SECONDS, LAST_SECONDS = 3.0, 60.0

T = TypeVar("T")


class ChangeWatch(Generic[T]):
    """Looks every few seconds, in a thread of its own until `stopping`, and calls `changed` when it sees something else.

    While what it sees changes again and again, it looks more and more seldom: `changed` costs bytes.
    """

    def __init__(
        self,
        look: Callable[[], T],
        changed: Callable[[], None],
        stopping: threading.Event,
        first: float = FIRST_SECONDS,
        last: float = LAST_SECONDS,
    ) -> None:
        self._look, self._changed, self._stopping = look, changed, stopping
        self._first, self._last = first, last
        self._seen = look()
        self._thread = threading.Thread(target=self.run, name="watch", daemon=True)

    @property
    def seen(self) -> T:
        """What was seen last."""
        return self._seen

    def start(self) -> None:
        """Look in a thread of its own."""
        self._thread.start()

    def run(self) -> None:
        """Look until `stopping`, in this thread."""
        pause = self._first
        while not self._stopping.wait(pause):
            try:
                now = self._look()
                if now == self._seen:
                    pause = self._first
                    continue
                self._seen = now
                self._changed()
            except Exception:
                log.exception("a check that is made again and again failed; trying again")
            pause = min(pause * 2, self._last)
