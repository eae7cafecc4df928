"""Polling a value and reporting its changes."""

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from umbel.loops import Loop

log = logging.getLogger("umbel.agent")

FIRST_SECONDS, LAST_SECONDS = 3.0, 60.0

T = TypeVar("T")


class ChangeWatch(Generic[T]):
    """Calls `look` every few seconds until `stopping` is set, and `changed` when its value is another one.

    The pause is `first` seconds. While the value changes at every look, the pause doubles up to `last` seconds, because each
    change costs a message. When `changed` raises, it is called again after the next look.
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
        self._seen, self._untold = look(), False
        self._thread = Loop("watch", self.run, stopping, log)

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
            now = self._look()
            if now == self._seen and not self._untold:
                pause = self._first
                continue
            self._seen, self._untold = now, True
            self._changed()
            self._untold = False
            pause = min(pause * 2, self._last)
