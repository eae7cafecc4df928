"""Loops in threads of their own that never end in silence: after an error they say so, and go on."""

import logging
import threading
from collections.abc import Callable

FIRST_PAUSE, LAST_PAUSE = 0.5, 30.0
"""Seconds before a loop that failed goes on: the first time, and at most."""


def start_loop(
    name: str,
    loop: Callable[[], None],
    stopping: threading.Event,
    log: logging.Logger,
    first_pause: float = FIRST_PAUSE,
) -> threading.Thread:
    """Run `loop` in a daemon thread until it returns or `stopping` is set; returns the started thread.

    When the loop raises, `log` gets one ERROR line with the traceback and the loop is called again: after `first_pause`
    seconds, doubled up to LAST_PAUSE. A repeat of the same error is logged without its traceback.
    """
    thread = threading.Thread(target=keep_going, args=(name, loop, stopping, log, first_pause), name=name, daemon=True)
    thread.start()
    return thread


def keep_going(
    name: str, loop: Callable[[], None], stopping: threading.Event, log: logging.Logger, first_pause: float
) -> None:
    """As `start_loop`, in the calling thread."""
    pause, said = first_pause, ""
    while not stopping.is_set():
        try:
            loop()
            return
        except Exception as error:
            if stopping.is_set():
                return
            sentence = f"{type(error).__name__}: {error}"
            log.error("%s failed (%s); it goes on in %.1f s", name, sentence, pause, exc_info=sentence != said)
            said = sentence
        stopping.wait(pause)
        pause = min(pause * 2, LAST_PAUSE)
