"""Telling the server that the device is there, and how it is: statuses, the last will, and the last word."""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from umbel.messages import STATUS_SECONDS
from umbel_edge.config import AgentConfig
from umbel_edge.connection.broker_link import BrokerLink
from umbel_edge.connection.device_messages import DeviceMessages
from umbel_edge.connection.server_time import ServerTime
from umbel_edge.device.change_watch import ChangeWatch
from umbel_edge.device.condition_check import ConditionCheck
from umbel_edge.device.installed_models import InstalledModels
from umbel_edge.device.sensors import resident_mb
from umbel_edge.device.state import AgentState
from umbel_edge.waiting import Stopped

log = logging.getLogger("umbel.agent")


@dataclass(frozen=True)
class Eligibility:
    """The broken conditions by name, the number of examples, and the conditions in words.

    Two are equal when the same conditions are broken, whatever figures their words hold: only another one is worth a
    status. `renewal` changes often enough that a status is said again before it expires.
    """

    broken: tuple[str, ...]
    examples: int
    reasons: list[str] = field(compare=False)
    renewal: int = 0


class Presence:
    """One device's statuses, in sessions that are numbered by the state's epoch.

    A status is published when the link comes up, when the device's eligibility changes, and after `say_hello`.
    """

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
        self._watch = ChangeWatch(self._look, self.say_hello, stopping)

    def start(self) -> None:
        """Begin to look for changes."""
        self._watch.start()

    def will(self) -> bytes | None:
        """The status that ends a new session when its connection breaks; begins that session."""
        self._epoch = self._state.next_epoch()
        return self.last_word()

    def last_word(self) -> bytes | None:
        """The status that this session is over; None when the agent stops while its key cannot be used."""
        try:
            return self._status(online=False)
        except Stopped:
            return None

    def say_hello(self) -> None:
        """Publish how the device is now."""
        # One thread at a time: the broker retains the status that came last, which must have the highest sequence.
        with self._publishing, suppress(Stopped):
            self._link.publish("status", self._status(online=True), retain=True)

    def _status(self, online: bool) -> bytes:
        installed, seen = self._models.installed, self._watch.seen
        release = installed.release if installed is not None else ""
        return self._messages.status(self._epoch, online, seen.examples, round(resident_mb(), 1), release, seen.reasons)

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
