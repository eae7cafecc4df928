"""Polling a value and reporting its changes."""

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger("umbel.agent")

FIRST_SECONDS, LAST_SECONDS = 3.0, 60.0

T = TypeVar("T")


class ChangeWatch(Generic[T]):
    """Calls `look` every few seconds until `stopping` is set, and `changed` when its value is another one.

    The pause is `first` seconds. While the value changes at every look, the pause doubles up to `last` seconds, because each
    change costs a message.
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
        """The last value."""
        return self._seen

    def start(self) -> None:
        """Look in a thread of its own."""
        self._thread.start()

    def run(self) -> None:
        """Look until `stopping` is set, in the calling thread."""
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
