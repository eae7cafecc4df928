"""A server, one real agent, and somebody at the broker who hears everything and says it again."""

import base64
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.running_agent import RunningAgent
from tests.server_harness import POPULATION, RunningServer, config_of
from tests.settled_commands import settled
from tests.waiting import eventually
from umbel import topics
from umbel.mqtt import Link
from umbel.plan import Plan
from umbel_server.limits.rates import Limits, MessageLimits
from umbel_server.limits.refusals import QUIET_SECONDS, Refusals
from umbel_server.runs.settings import RunSettings

CHANNELS: tuple[topics.Channel, ...] = ("command", "ack", "result", "status")


class Wire:
    """What goes over one broker; `heard` are topics and messages in their order."""

    def __init__(self, folder: Path, broker_port: int, clock: Callable[[], float], encrypt_commands: bool) -> None:
        self.running = RunningServer(folder / "server", broker_port, encrypt_commands=encrypt_commands)
        self.config, self.clock = config_of(self.running, folder / "phone"), clock
        self.heard: list[tuple[str, bytes]] = []
        self._junk = itertools.count()
        self._look_at_all()
        self.link = Link("127.0.0.1", broker_port, "somebody", ("umbel/#",), lambda *said: self.heard.append(said))
        self.link.start()
        assert self.link.wait_up(10)
        self.agent = RunningAgent(self.config, clock)
        self.running.wait_online(1)

    def _look_at_all(self) -> None:
        """Let the server look at every message, however many are forged, and log each that it refuses."""
        every = Limits(messages_per_second=1e6, forgeries_per_second=1e6)
        self.running.server.exchange.intake.limits = MessageLimits(
            every, Refusals(itertools.count(0, QUIET_SECONDS).__next__)
        )

    def restart(self) -> None:
        self.running.restart()
        self._look_at_all()

    def start_agent(self) -> None:
        self.agent = RunningAgent(self.config, self.clock)
        self.running.wait_online(1)

    def stop_agent(self) -> None:
        self.agent.stop()
        self.running.wait_online(0)

    def stop(self) -> None:
        self.agent.stop()
        self.link.stop()
        self.running.stop()

    def topic(self, channel: topics.Channel) -> str:
        return topics.topic(POPULATION, "phone", channel)

    def said_on(self, channel: topics.Channel) -> list[bytes]:
        return [message for topic, message in list(self.heard) if topic == self.topic(channel) and message]

    def say(self, channel: topics.Channel, message: bytes) -> None:
        assert self.link.publish(self.topic(channel), message)

    def settle(self, caplog: pytest.LogCaptureFixture) -> None:
        """Until the server and the device have taken in all that was said before: something they refuse is said last."""
        junk = {channel: f"junk-{next(self._junk)}" for channel in CHANNELS}
        before = caplog.text.count("without a valid signature")
        refused = {channel: caplog.text.count(f"on {self.topic(channel)}: ") for channel in CHANNELS}
        for channel, text in junk.items():
            self.say(channel, text.encode())
        eventually(lambda: caplog.text.count("without a valid signature") > before)
        for channel in CHANNELS[1:]:
            eventually(
                lambda at=channel: caplog.text.count(f"on {self.topic(at)}: ") > refused[at]  # type: ignore[misc]
            )

    def ask(self, kind: str, **wanted: object) -> dict[str, object]:
        client = self.running.client
        return settled(client, client.post("/v1/commands", {"population": POPULATION, "kind": kind, **wanted}), 20)[0]

    def train(self, plan: Plan, rounds: int = 2, encrypt_commands: bool = False) -> dict[str, object]:
        settings = RunSettings(rounds=rounds, encrypt_commands=encrypt_commands)
        id = self.running.server.runs.start(POPULATION, plan.sha256, settings).id
        eventually(lambda: self.running.server.runs.get(id).state != "running", 40)
        return self.running.client.get(f"/v1/runs/{id}")

    @property
    def device(self) -> dict[str, object]:
        return dict(self.running.client.get(f"/v1/devices/{POPULATION}/phone"))


@contextmanager
def wired(folder: Path, broker_port: int, clock: Callable[[], float], encrypt_commands: bool = False) -> Iterator[Wire]:
    wire = Wire(folder, broker_port, clock, encrypt_commands)
    try:
        yield wire
    finally:
        wire.stop()


def readable(token: bytes) -> bytes:
    """Every part of a token that is base64url, decoded: what who has it can look for known bytes in."""
    parts = token.split(b".")
    return b"\n".join(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)) for part in parts)
