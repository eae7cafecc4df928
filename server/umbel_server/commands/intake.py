"""Intake: the messages of devices, each verified with its device's key and within the limits."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from sqlalchemy.exc import DataError, OperationalError

from umbel import messages, sealing, topics
from umbel.errors import UmbelError
from umbel.messages import Ack, Result, Status
from umbel_server.commands.command_answers import CommandAnswers
from umbel_server.commands.presence import Presence
from umbel_server.devices.register import ACTIVE, Devices
from umbel_server.limits.rates import STRANGERS, MessageLimits

log = logging.getLogger("umbel.exchange")

MOST_WAITING = 10_000
"""Messages kept for later while the database cannot be written; the repeat of a command brings back what is beyond that."""

STALL_SECONDS, QUIET_SECONDS, CATCH_UP_SECONDS = 0.5, 0.3, 5.0


class Intake:
    """Passes verified messages to `presence` and `answers`; those that the database cannot take now wait for `again`."""

    def __init__(
        self,
        devices: Devices,
        presence: Presence,
        answers: CommandAnswers,
        limits: MessageLimits,
        unseal: Callable[[bytes], bytes],
        clock: Callable[[], float],
    ) -> None:
        self._devices, self._presence, self._answers = devices, presence, answers
        self.limits, self._unseal, self._clock = limits, unseal, clock
        self._again: deque[tuple[str, bytes]] = deque(maxlen=MOST_WAITING)
        self._busy, self._handled, self._stalled = False, -math.inf, -math.inf
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End a `catch_up` that waits."""
        self._stopping.set()

    def take_in(self, topic: str, payload: bytes) -> None:
        """Take a message in, or keep it for `again` while the database is locked."""
        began = time.monotonic()
        self._busy = True
        try:
            self._take_in(topic, payload)
        except OperationalError as error:
            log.warning("a message on %s waits for the database: %s", topic, str(error).splitlines()[0])
            self._again.append((topic, payload))
        finally:
            self._busy = False
            self._handled = time.monotonic()
            if self._again or self._handled - began > STALL_SECONDS:
                self._stalled = self._handled

    def again(self) -> None:
        """Take the messages in that waited for the database."""
        for _ in range(len(self._again)):
            self.take_in(*self._again.popleft())

    def catch_up(self) -> None:
        """After the database was slow or locked: wait until the messages since then are taken in, at most CATCH_UP_SECONDS."""
        until = time.monotonic() + CATCH_UP_SECONDS
        while (now := time.monotonic()) < until:
            behind = self._busy or bool(self._again)
            lately = behind or now - self._stalled < CATCH_UP_SECONDS
            if not lately or (not behind and now - self._handled > QUIET_SECONDS):
                return
            self._stopping.wait(QUIET_SECONDS / 10)

    def _take_in(self, topic: str, payload: bytes) -> None:
        name = STRANGERS
        try:
            address = topics.parse(topic)
            if not payload:
                return  # a retained message was cleared
            of = f"{address.population}/{address.device}"
            if not self.limits.admit(of, self._devices.may_be_known(address.population, address.device)):
                return
            known = self._devices.known(address.population, address.device)
            name = of
            key = known.key
            if sealing.is_sealed(payload):
                payload = self._unseal(payload)
            message: Status | Ack | Result
            if address.channel == "status":
                message = messages.decode(payload, Status, key)
            elif address.channel == "ack":
                message = messages.decode(payload, Ack, key)
            else:
                message = messages.decode(payload, Result, key)
            if (message.population, message.device) != (address.population, address.device):
                raise UmbelError(f"it speaks for {message.population}/{message.device}")
            messages.check_current(message, now := self._clock())
        except UmbelError as error:
            self.limits.forged(name, f"on {topic}: {error}")
            return
        self.limits.signed(name)
        if known.state != ACTIVE:
            self._presence.drop(known, address.channel)
            return
        self._devices.clocks.signed_at(message.population, message.device, message.at - now)
        try:
            self._act_on(message)
        except DataError:
            self.limits.forged(name, f"on {topic}: it holds what the database does not take")

    def _act_on(self, message: Status | Ack | Result) -> None:
        if isinstance(message, Status):
            self._presence.take_in(message)
            return
        if isinstance(message, Ack):
            self._answers.acknowledge(message)
        else:
            self._answers.complete(message)
        self._presence.spoke(message.population, message.device, message.command)
