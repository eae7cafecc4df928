"""The server's signing keys that this device trusts, and how it learns of new ones."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping

from joserfc.jwk import ECKey

from umbel.errors import UmbelError
from umbel.loops import Loop
from umbel_edge.connection.enrolment import catch_up
from umbel_edge.connection.http import ServerHttp
from umbel_edge.device.state import AgentState
from umbel_edge.waiting import Stopped

log = logging.getLogger("umbel.agent")

LOOK_SECONDS = 30.0
"""Messages signed by unknown keys make the device ask the server at most once in so many seconds."""


class ServerKeys:
    """The keys that follow from the trust in the state. Safe to use from several threads.

    A thread of its own asks the server for new keys: when a Rekey command names one, and when a message is signed by an
    unknown key, because the device may have missed the Rekey command.
    """

    def __init__(self, state: AgentState, http: ServerHttp, clock: Callable[[], float]) -> None:
        trust = state.pinned()
        if trust is None:
            raise UmbelError(f"{state.folder}: this device trusts no server yet; enrol it first")
        self._trust, self._lineage = trust, trust.lineage()
        self._state, self._http, self._clock = state, http, clock
        self._asked: queue.Queue[tuple[str, Callable[[], None]] | None] = queue.Queue()
        self._looked, self._ended = float("-inf"), threading.Event()
        self._thread = Loop("server-keys", self._work, self._ended, log)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._asked.put(None)

    @property
    def known(self) -> Mapping[str, ECKey]:
        """Every key by fingerprint, retired ones too: they verify plans, releases, and commands that were taken in before."""
        return self._lineage.all

    @property
    def accepted(self) -> Mapping[str, ECKey]:
        """The keys whose commands are accepted now, by fingerprint."""
        return self._lineage.accepted(self._clock())

    def learn(self, key: str, then: Callable[[], None]) -> None:
        """Call `then` once the key with this fingerprint is known; asks the server when it is not."""
        if key in self.known:
            then()
        else:
            self._asked.put((key, then))

    def missed(self, key: str) -> None:
        """Take in that a message was signed by the unknown `key`, which may be a new key of the server."""
        now = time.monotonic()
        if key not in self.known and now - self._looked > LOOK_SECONDS:
            self._looked = now
            self._asked.put((key, lambda: None))

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            key, then = asked
            try:
                if key not in self.known:
                    self._trust = catch_up(self._http, self._state, self._trust)
                    self._lineage = self._trust.lineage()
                if key in self.known:
                    then()
                else:
                    log.warning("the server does not know the signing key %r: somebody else may have signed", key[:8])
            except Stopped:
                return
            except UmbelError as error:
                log.warning("the server's signing keys could not be asked for: %s", error)
