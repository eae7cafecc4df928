"""Loops in threads of their own: when the work of one fails, the error is logged and the loop continues."""

import logging
import threading
from collections.abc import Callable

FIRST_PAUSE, LAST_PAUSE = 0.5, 30.0
"""The first and the longest pause, in seconds, before a failed loop continues."""


class Loop(threading.Thread):
    """A daemon thread that calls `work` until it returns, or until `stopping` is set after it raised.

    When `work` raises, `log` gets an ERROR line, and `work` is called again: after FIRST_PAUSE seconds, doubled up to
    LAST_PAUSE. The first of equal errors in a row is logged with its traceback.
    """

    def __init__(self, name: str, work: Callable[[], None], stopping: threading.Event, log: logging.Logger) -> None:
        super().__init__(name=name, daemon=True)
        self._work, self._until, self._log = work, stopping, log

    def run(self) -> None:
        """Run the loop in the calling thread."""
        pause, said = FIRST_PAUSE, ""
        while True:
            try:
                return self._work()
            except Exception as error:
                if self._until.is_set():
                    return None
                sentence = f"{type(error).__name__}: {error}"
                self._log.error(
                    "the thread %r failed (%s); it goes on in %.1f s",
                    *(self.name, sentence, pause),
                    exc_info=sentence != said,
                )
                said = sentence
            self._until.wait(pause)
            pause = min(pause * 2, LAST_PAUSE)
