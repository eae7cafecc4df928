"""Presence: which devices are there, by what they say and answer; and telling a barred device its state."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable

import msgspec

from umbel import topics
from umbel.messages import Hello, Standing, Status
from umbel_server.commands.delivery import Delivery
from umbel_server.commands.listeners import Listeners
from umbel_server.commands.outbox import Outbox
from umbel_server.commands.roll_call import Name, Question, RollCall
from umbel_server.devices.register import ACTIVE, Devices, Heard, Known

log = logging.getLogger("umbel.exchange")

TOLD_SECONDS = 5.0
"""A barred device that keeps coming back is told its standing at most once in this time."""
LOOK_SECONDS = 60.0
"""Devices that enrolled are asked whether they are there after at most this time."""
WRITE_SECONDS = 15.0
"""Signs of life are in the register after at most this time."""


class Presence:
    """Notes the presence of devices in the register, asks those in doubt, and tells listeners. For any thread."""

    def __init__(
        self,
        devices: Devices,
        outbox: Outbox,
        delivery: Delivery,
        listeners: Listeners,
        silence: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._devices, self._outbox, self._delivery, self._listeners = devices, outbox, delivery, listeners
        self._monotonic = monotonic
        self._roll_call = RollCall(silence)
        self._lock = threading.Lock()
        self._written = self._looked = -math.inf
        self._told: dict[tuple[str, str], float] = {}
        """Per barred device: monotonic time before which it is not told its standing again."""

    def take_in(self, status: Status) -> None:
        """Note a status; a device that begins a session gets the commands that wait for it."""
        name = status.population, status.device
        with self._lock:
            proven = status.online and self._roll_call.is_answer(name, status.answers)
        known_twin = self._devices.twins.named(*name)
        heard = self._devices.heard(status, proven)
        if self._devices.twins.named(*name) and (heard is Heard.BEGAN or not known_twin):
            self._ask(Question(name, 0.0))  # it says so to the one that is connected now
        if heard is Heard.IGNORED:
            return
        with self._lock:
            if heard is Heard.LEFT:
                self._roll_call.left(name, self._monotonic())
            elif heard is Heard.DOUBTFUL:
                self._roll_call.doubt(name, self._monotonic(), online=False)
            else:
                self._roll_call.heard(name, self._monotonic())
        self._listeners.tell_presence(status.population)
        if heard is Heard.DOUBTFUL:
            self.ask()
        elif heard is Heard.BEGAN:
            self._delivery.send_waiting(*name)

    def spoke(self, population: str, device: str, command: str) -> None:
        """Note an acknowledgement or a result: a device that counts as offline is asked, unless this answers a question."""
        name = population, device
        with self._lock:
            proven, online = self._roll_call.is_answer(name, command), self._roll_call.is_online(name)
            if proven or online:
                self._roll_call.heard(name, self._monotonic())
            else:
                self._roll_call.doubt(name, self._monotonic(), online=False)
        if proven and not online:  # an older agent, which rejects a Hello
            self._devices.answered(*name)
            self._listeners.tell_presence(population)
            self._delivery.send_waiting(*name)
        elif online:
            self._devices.alive(*name)
        else:
            self.ask()

    def doubt(self, devices: Iterable[Name]) -> None:
        """Ask devices whether they are there, because they did not answer something; each counts as it did until then."""
        now = self._monotonic()
        with self._lock:
            for name in devices:
                self._roll_call.doubt(name, now, self._roll_call.is_online(name))

    def ask_all(self) -> None:
        """Ask every active device whether it is there, as the server has connected anew."""
        names = self._devices.active()
        with self._lock:
            self._roll_call.ask_all(names, self._monotonic())
        self.ask()

    def ask(self) -> None:
        """Ask the devices whose turn it is, and count those as offline that did not answer."""
        with self._lock:
            questions, gone = self._roll_call.turn(self._monotonic())
        for question in questions:
            self._ask(question)
        if gone:
            self._devices.gone(gone)
            for population in {population for population, _ in gone}:
                self._listeners.tell_presence(population)

    def _ask(self, question: Question) -> None:
        known = self._devices.remembered(*question.name)
        if known is not None and known.state != ACTIVE:
            with self._lock:
                self._roll_call.forget(question.name)
            return
        hello = self._outbox.hello(*question.name, Hello(question.within, self._devices.twins.named(*question.name)))
        with self._lock:
            self._roll_call.asked(question.name, hello.id)
        self._delivery.send([hello])

    def ask_enrolled(self) -> None:
        """Ask the devices that enrolled lately, in case their first word was lost."""
        if self._monotonic() - self._looked > LOOK_SECONDS:
            self._looked = self._monotonic()
            names = self._devices.active()
            with self._lock:
                self._roll_call.add(names, self._looked)

    def write_heard(self, now: bool = False) -> None:
        """Write the signs of life to the register, from time to time or `now`."""
        if now or self._monotonic() - self._written > WRITE_SECONDS:
            self._written = self._monotonic()
            self._devices.write_heard()

    def forget_all(self) -> None:
        """Count every device as offline until it says otherwise."""
        self._devices.forget_presence()
        with self._lock:
            self._roll_call.ask_all((), self._monotonic())
        self._listeners.tell_presence(None)

    def forget_barred(self, population: str, device: str) -> None:
        """Tell a device its standing again at once, as that changed."""
        self._told.pop((population, device), None)

    def drop(self, known: Known, channel: topics.Channel) -> None:
        """Drop a message of a barred device: log the first one, and tell a device that comes back its standing."""
        now, name = self._monotonic(), (known.population, known.device)
        with self._lock:
            self._roll_call.forget(name)
        if name not in self._told:
            log.warning("dropped a message of %s/%s, and will drop all others: it is %s", *name, known.state)
            self._told[name] = -math.inf
        if channel != "status" or now < self._told[name]:
            return
        self._told[name] = now + TOLD_SECONDS
        standing = msgspec.convert({"type": "standing", "state": known.state, "reason": known.reason}, Standing)
        self._delivery.send([self._outbox.notice(*name, standing)])
