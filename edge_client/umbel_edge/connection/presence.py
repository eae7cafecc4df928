"""The device's statuses: while it is online, when it stops, and the last will."""

import logging
import random
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from umbel.loops import Loop
from umbel.messages import STATUS_SECONDS, Hello
from umbel_edge.config import AgentConfig
from umbel_edge.connection.broker_link import BrokerLink
from umbel_edge.connection.device_messages import DeviceMessages
from umbel_edge.connection.server_time import ServerTime
from umbel_edge.device.change_watch import ChangeWatch
from umbel_edge.device.condition_check import ConditionCheck
from umbel_edge.device.full_storage import is_full
from umbel_edge.device.installed_models import InstalledModels
from umbel_edge.device.sensors import resident_mb
from umbel_edge.device.state import AgentState
from umbel_edge.waiting import Stopped

log = logging.getLogger("umbel.agent")

TWIN_SECONDS = 30.0
"""The pause before a new connection while two devices with one identity take the connection from each other."""


@dataclass(frozen=True)
class Eligibility:
    """The names of the conditions that do not hold, the number of examples, and `reasons`: the conditions as phrases.

    Reasons do not count for equality: a new status is published when other conditions are broken, not when a figure
    changes. `renewal` changes often enough that a status is published again before it expires.
    """

    broken: tuple[str, ...]
    examples: int
    reasons: list[str] = field(compare=False)
    renewal: int = 0


class Presence:
    """Publishes one device's statuses. Every connection to the broker is a session with the next epoch."""

    def __init__(
        self,
        config: AgentConfig,
        state: AgentState,
        messages: DeviceMessages,
        link: BrokerLink,
        time: ServerTime,
        models: InstalledModels,
        conditions: ConditionCheck,
        count_examples: Callable[[], int],
        stopping: threading.Event,
    ) -> None:
        self._config, self._state, self._messages, self._link, self._time = config, state, messages, link, time
        self._models, self._conditions, self._count_examples = models, conditions, count_examples
        self._epoch = 0
        self._publishing = threading.Lock()
        self._broken: tuple[str, ...] = ()
        self._stopping, self._random = stopping, random.Random()
        self._asked = threading.Event()
        self._question, self._twin = ("", 0.0), False
        self._watch = ChangeWatch(self._look, self.say_hello, stopping)

    def start(self) -> None:
        """Publish a status at every change of the device's eligibility from now on, and answers to Hello commands."""
        self._watch.start()
        Loop("hello", self._answer, self._stopping, log).start()

    def will(self) -> bytes | None:
        """Begin a session, and return the status that the broker publishes when its connection breaks."""
        try:
            self._state.raise_epoch(self._epoch)
            self._epoch = self._state.next_epoch()
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            self._epoch = max(self._epoch, self._state.epoch) + 1
            log.warning("the device's storage is full: the number of this session, %d, is not saved", self._epoch)
        return self.last_word()

    def last_word(self) -> bytes | None:
        """The status that this session is over; None when the agent stops while the signing key cannot be used."""
        try:
            return self._status(online=False)
        except Stopped:
            return None

    def say_hello(self) -> None:
        """Publish that the device is online, and its eligibility."""
        self._publish("")

    def answer(self, command: str, hello: Hello) -> None:
        """Answer a Hello within the time that it gives; of several questions only the newest is answered. Does not block."""
        self._note_twin(hello.twin)
        if hello.within == 0:
            self._publish(command)
            return
        self._question = command, hello.within
        self._asked.set()

    def _note_twin(self, twin: bool) -> None:
        if twin and not self._twin:
            log.error(
                "another device uses the identity of this one, %s/%s: its state folder or SD card was copied. Give one of them a "
                "new state folder and enrol it with a new invitation; until then they take turns",
                *(self._config.population, self._config.device),
            )
        self._twin = twin
        self._link.slow_down(TWIN_SECONDS if twin else 0.0)

    def _answer(self) -> None:
        while not self._stopping.is_set():
            if not self._asked.wait(1.0):
                continue
            self._stopping.wait(self._random.uniform(0, self._question[1]))
            self._asked.clear()
            self._publish(self._question[0])

    def _publish(self, answers: str) -> None:
        # One thread at a time: the broker retains the status that came last, which must have the highest sequence.
        with self._publishing, suppress(Stopped):
            self._link.publish("status", self._status(online=True, answers=answers), retain=True)

    def _status(self, online: bool, answers: str = "") -> bytes:
        installed, seen = self._models.installed, self._watch.seen
        release = installed.release if installed is not None else ""
        memory = round(resident_mb(), 1)
        return self._messages.status(self._epoch, online, seen.examples, memory, release, seen.reasons, answers)

    def _look(self) -> Eligibility:
        violations = self._conditions.violations(self._config.conditions)
        names, reasons = (
            [violation.condition for violation in violations],
            [violation.phrase for violation in violations],
        )
        if wrong := self._time.wrong:
            if "clock" not in self._broken:
                log.warning("%s; the device takes no work until then", wrong)
            names, reasons = [*names, "clock"], [*reasons, wrong]
        self._broken = tuple(names)
        renewal = self._time.since_start(STATUS_SECONDS / 3)
        return Eligibility(self._broken, self._count_examples(), reasons, renewal)
