"""The exchange: the server's connection to the broker, over which commands go out and answers come in."""

import logging
import ssl
import threading
from collections.abc import Callable, Iterable

from umbel import topics
from umbel.loops import Loop
from umbel.mqtt import Link
from umbel_server.commands.command_answers import CommandAnswers
from umbel_server.commands.delivery import Delivery
from umbel_server.commands.intake import Intake
from umbel_server.commands.listeners import Listeners, Transition
from umbel_server.commands.outbox import Addressed, Outbox
from umbel_server.commands.presence import Presence
from umbel_server.commands.received_blobs import ReceivedBlobs
from umbel_server.devices.register import Devices
from umbel_server.limits.rates import MessageLimits
from umbel_server.storage.database import Database

log = logging.getLogger("umbel.exchange")

SWEEP_SECONDS = 1.0
CLIENT_ID = "umbel-server"


class Exchange:
    """Connects delivery, intake and presence to the broker; a thread of its own expires and repeats commands.

    A device that is silent for `silence` seconds is asked whether it is there.

    Messages are taken in, and `listeners` told, in the link's thread.
    """

    def __init__(
        self,
        database: Database,
        devices: Devices,
        outbox: Outbox,
        received_blobs: ReceivedBlobs,
        limits: MessageLimits,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        unseal: Callable[[bytes], bytes],
        clock: Callable[[], float],
        silence: float,
    ) -> None:
        self.listeners = Listeners()
        self._devices = devices
        self._delivery = Delivery(devices, outbox, self._publish)
        self._presence = Presence(devices, outbox, self._delivery, self.listeners, silence)
        self._answers = CommandAnswers(database, outbox, received_blobs, self.listeners, clock)
        self.intake = Intake(devices, self._presence, self._answers, limits, unseal, clock)
        self._link = Link(
            host,
            port,
            CLIENT_ID,
            tuple(topics.everyone(channel) for channel in ("status", "ack", "result")),
            self.intake.take_in,
            on_up=self._presence.ask_all,
            on_down=self._down,
            tls=tls,
            live_only=True,  # a new subscriber gets only some of many retained statuses
        )
        self._stopping = threading.Event()
        self._sweeper = Loop("outbox", self._sweep, self._stopping, log)

    def start(self) -> None:
        """Connect, and begin to expire and repeat commands."""
        self._devices.forget_presence()
        self._link.start()
        self._sweeper.start()

    def stop(self) -> None:
        """Disconnect."""
        self._stopping.set()
        self.intake.stop()
        self._link.stop()
        if self._sweeper.ident is not None:
            self._sweeper.join(5)
        self._presence.write_heard(now=True)

    @property
    def is_up(self) -> bool:
        """Whether the broker is connected."""
        return self._link.is_up

    def send(self, commands: Iterable[Addressed]) -> None:
        """Publish commands; one that cannot be published now goes when its device comes back, if the outbox holds it."""
        self._delivery.send(commands)

    def tell(self, population: str, device: str, transitions: Iterable[Transition]) -> None:
        """Tell listeners that an administrator changed a device and ended commands, once that is committed."""
        self._presence.forget_barred(population, device)
        for transition in transitions:
            self.listeners.tell(transition)
        self.listeners.tell_presence(population)

    def clear_status(self, population: str, device: str) -> None:
        """Let the broker forget the retained status of a device that is gone."""
        self._link.publish(topics.topic(population, device, "status"), b"", retain=True)

    def _publish(self, topic: str, payload: bytes) -> None:
        self._link.publish(topic, payload)

    def _down(self, reason: str) -> None:
        log.warning("the broker is gone (%s): every device counts as offline until it is back", reason)
        self._presence.forget_all()

    def _sweep(self) -> None:
        while not self._stopping.wait(SWEEP_SECONDS):
            self.intake.again()
            self._answers.expire()
            if not self.is_up:
                continue
            self._presence.doubt(self._delivery.repeat())
            self._presence.ask_enrolled()
            self._presence.ask()
            self._presence.write_heard()
