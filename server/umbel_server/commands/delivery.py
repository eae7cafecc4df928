"""Delivery: commands go from the outbox to their devices, again where they may have been lost."""

import logging
from collections.abc import Callable, Iterable

from umbel import sealing, topics
from umbel_server.commands.outbox import Addressed, Outbox
from umbel_server.devices.register import Devices

log = logging.getLogger("umbel.exchange")

RESEND_SECONDS = 10.0
"""How long a command may be unacknowledged before it is sent again."""
UNFINISHED_SECONDS = 60.0
"""How long an accepted command may be silent before it is sent again: its result may have been lost."""


class Delivery:
    """Publishes commands by `publish(topic, payload)`; sealed ones are sealed for their device on the way."""

    def __init__(self, devices: Devices, outbox: Outbox, publish: Callable[[str, bytes], None]) -> None:
        self._devices, self._outbox, self._publish = devices, outbox, publish

    def send(self, commands: Iterable[Addressed]) -> None:
        """Publish commands; one that cannot be published now goes when its device comes back, if the outbox holds it."""
        for command in commands:
            token = command.token
            if command.sealed:
                key = self._devices.agreement(command.population, command.device)
                if key is None:
                    log.warning(
                        "command %s waits: %s/%s has told no key to seal it with, and it may not leave in the clear",
                        *(command.id, command.population, command.device),
                    )
                    continue
                token = sealing.seal(token, key)
            self._publish(topics.topic(command.population, command.device, "command"), token)

    def send_waiting(self, population: str, device: str) -> None:
        """Send the open commands of a device that came back."""
        self._send_again(self._outbox.waiting(population, device))

    def repeat(self) -> set[tuple[str, str]]:
        """Send the commands again that were not answered in time; returns the devices that they are for."""
        silent = self._outbox.silent(RESEND_SECONDS, UNFINISHED_SECONDS)
        self._send_again(silent)
        return {(command.population, command.device) for command in silent}

    def _send_again(self, commands: list[Addressed]) -> None:
        self.send(commands)
        if commands:
            self._outbox.touch([command.id for command in commands])
