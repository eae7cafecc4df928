"""Presence: takes in the statuses of devices, and tells a barred device its state."""

import logging
import math
import time

import msgspec

from umbel import topics
from umbel.messages import Standing, Status
from umbel_server.commands.delivery import Delivery
from umbel_server.commands.listeners import Listeners
from umbel_server.commands.outbox import Outbox
from umbel_server.devices.register import Devices, Known

log = logging.getLogger("umbel.exchange")

TOLD_SECONDS = 5.0
"""A barred device that keeps coming back is told its standing at most once in this time."""


class Presence:
    """Notes the presence of devices in the register and tells listeners of it."""

    def __init__(self, devices: Devices, outbox: Outbox, delivery: Delivery, listeners: Listeners) -> None:
        self._devices, self._outbox, self._delivery, self._listeners = devices, outbox, delivery, listeners
        self._told: dict[tuple[str, str], float] = {}
        """Per barred device: monotonic time before which it is not told its standing again."""

    def take_in(self, status: Status) -> None:
        """Note a status; a device that begins a session gets the commands that wait for it."""
        began = self._devices.heard(status)
        self._listeners.tell_presence(status.population)
        if began:
            self._delivery.send_waiting(status.population, status.device)

    def forget_all(self) -> None:
        """Count every device as offline until it says otherwise."""
        self._devices.forget_presence()
        self._listeners.tell_presence(None)

    def forget_barred(self, population: str, device: str) -> None:
        """Tell a device its standing again at once, as that changed."""
        self._told.pop((population, device), None)

    def drop(self, known: Known, channel: topics.Channel) -> None:
        """Drop a message of a barred device: log the first one, and tell a device that comes back its standing."""
        now, name = time.monotonic(), (known.population, known.device)
        if name not in self._told:
            log.warning("dropped a message of %s/%s, and will drop all others: it is %s", *name, known.state)
            self._told[name] = -math.inf
        if channel != "status" or now < self._told[name]:
            return
        self._told[name] = now + TOLD_SECONDS
        standing = msgspec.convert({"type": "standing", "state": known.state, "reason": known.reason}, Standing)
        self._delivery.send([self._outbox.notice(*name, standing)])
