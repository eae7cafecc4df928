"""Whether this device takes part, as the server decides. A suspended device waits; the agent of a revoked device ends."""

import logging
import random
import threading
from collections.abc import Callable

import urllib3

from umbel import messages
from umbel.enrolment import CLOCK
from umbel_edge.connection.http import Refused
from umbel_edge.waiting import Stopped, back_off

log = logging.getLogger("umbel.agent")

FIRST_SECONDS, LAST_SECONDS = 1.0, 300.0


class Participation:
    """The server's last decision about this device. Safe to use from several threads.

    `reason` is the reason why the device may not work now; empty while it may. News over MQTT only makes the device ask over
    HTTP, and that answer counts, so that an old message does no harm. `changed` is called after news and refusals.
    """

    def __init__(self, stopping: threading.Event, changed: Callable[[], None], seed: int | None = None) -> None:
        self.reason = ""
        self._stopping, self._changed = stopping, changed
        self._news = threading.Event()
        self._random = random.Random(seed)

    def hear(self, news: messages.Standing) -> None:
        """Take in news over MQTT."""
        if news.state != "active" and not self.reason:
            self.reason = f"the device was {news.state}" + (f": {news.reason}" if news.reason else "")
        self._news.set()
        self._changed()

    def refused(self, error: Refused) -> None:
        """Take in that a request was refused because the device is suspended or revoked."""
        if not self.reason:
            self.reason = str(error)
            self._changed()

    def wait_out(self, ask: Callable[[], object]) -> None:
        """Ask the server again and again; return once this device takes part.

        `ask` makes one request. Raises Refused when the device is revoked or refused for another reason, and Stopped when
        the agent stops.
        """
        waited = 0
        while True:
            try:
                ask()
            except Refused as error:
                if error.code not in ("suspended", CLOCK) and not error.foreign:
                    raise
                if waited == 0:
                    log.warning("%s; asking the server again from time to time", error)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                log.info("the server could not be asked whether this device takes part: %s", error)
            else:
                log.info("this device takes part again")
                self.reason = ""
                return
            self.pause(waited)
            waited += 1

    def pause(self, waited: int) -> None:
        """Wait until there is news, or a time that grows with `waited`; raises Stopped when the agent stops."""
        left = back_off(waited, FIRST_SECONDS, LAST_SECONDS, self._random)
        while left > 0 and not self._news.wait(min(left, 0.5)):
            if self._stopping.is_set():
                raise Stopped("the agent is stopping")
            left -= 0.5
        self._news.clear()
        if self._stopping.is_set():
            raise Stopped("the agent is stopping")
