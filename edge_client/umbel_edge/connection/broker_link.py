"""The device's MQTT connection: it receives commands and publishes the device's messages."""

import ssl
from collections.abc import Callable

from umbel import topics
from umbel.mqtt import Link, Will
from umbel_edge.config import AgentConfig


class BrokerLink:
    """One device's channels on the broker. Before `open` nothing is published."""

    def __init__(self, config: AgentConfig) -> None:
        self._population, self._device = config.population, config.device
        self._link: Link | None = None

    def open(
        self,
        host: str,
        port: int,
        on_command: Callable[[bytes], None],
        on_up: Callable[[], None],
        will: Callable[[], bytes | None],
        tls: ssl.SSLContext | None,
    ) -> None:
        """Begin connecting, and connect again whenever the connection breaks; see umbel.mqtt.Link.

        `will()` is the status that the broker publishes, retained, when the connection breaks.
        """
        self._link = Link(
            host,
            port,
            f"umbel-{self._population}-{self._device}",
            (self._topic("command"),),
            lambda _topic, token: on_command(token),
            on_up=on_up,
            will=lambda: self._will(will()),
            tls=tls,
        )
        self._link.start()

    def publish(self, channel: topics.Channel, token: bytes, retain: bool = False) -> None:
        """Publish a signed message, unless the link is down."""
        if self._link is not None:
            self._link.publish(self._topic(channel), token, retain)

    def slow_down(self, seconds: float) -> None:
        """Wait at least about `seconds` before every new connection from now on; 0 removes the limit."""
        if self._link is not None:
            self._link.slow_down(seconds)

    def close(self, last_status: bytes | None) -> None:
        """Publish a last status if there is one, and disconnect."""
        if self._link is not None:
            self._link.stop(farewell=self._will(last_status))

    def _will(self, status: bytes | None) -> Will | None:
        return Will(self._topic("status"), status) if status is not None else None

    def _topic(self, channel: topics.Channel) -> str:
        return topics.topic(self._population, self._device, channel)
