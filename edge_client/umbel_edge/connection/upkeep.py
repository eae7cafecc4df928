"""Chores of a running agent: renew the certificate, ask for the server's time, and forget old commands."""

import ssl
import threading
from collections.abc import Callable

from umbel_edge.connection.certificate import LOOK_SECONDS as CERTIFICATE_SECONDS
from umbel_edge.connection.certificate import Certificate
from umbel_edge.connection.enrolment import ask
from umbel_edge.connection.http import ServerHttp
from umbel_edge.connection.server_time import DAY, LOOK_SECONDS, ServerTime
from umbel_edge.device.change_watch import ChangeWatch
from umbel_edge.device.state import AgentState


class Upkeep:
    """The chores of one device, each in a thread of its own until `stopping`."""

    def __init__(
        self,
        state: AgentState,
        http: ServerHttp,
        time: ServerTime,
        clock: Callable[[], float],
        stopping: threading.Event,
    ) -> None:
        self._state, self._http, self._time, self._clock, self._stopping = state, http, time, clock, stopping

    def keep_certificate(self) -> ssl.SSLContext:
        """The context to connect to the broker with; its certificate is renewed from now on."""
        certificate = Certificate(self._state, self._http, self._clock)
        context = certificate.context()
        self._every(CERTIFICATE_SECONDS, certificate.due, certificate.keep)
        return context

    def start_days(self) -> None:
        """Do the daily chores from now on."""
        self._every(LOOK_SECONDS, lambda: self._time.since_start(DAY), self._new_day)

    def _every(self, seconds: float, look: Callable[[], int], changed: Callable[[], None]) -> None:
        ChangeWatch(look, changed, self._stopping, seconds, seconds).start()

    def _new_day(self) -> None:
        if (trust := self._state.pinned()) is not None:
            self._time.hear(ask(self._http, self._state, trust).at)  # again, as no clock is exact
        self._state.forget_old(self._time())
