"""SIGTERM and SIGINT: the first asks the agent to stop, the second ends the process at once.

A signal handler runs between two instructions of the main thread, which may hold a lock at that moment. So the handler
takes no lock: it writes a byte into a pipe, and a thread that reads the pipe asks the agent to stop.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` in a thread of its own at the first SIGTERM or SIGINT; call this from the main thread."""
    reading, writing = os.pipe()

    def handle(_number: int, _frame: FrameType | None) -> None:
        for number in NUMBERS:
            signal.signal(number, signal.SIG_DFL)  # the second means now
        os.write(writing, b"x")

    def wait() -> None:
        os.read(reading, 1)
        stop()

    threading.Thread(target=wait, name="signals", daemon=True).start()
    for number in NUMBERS:
        signal.signal(number, handle)
