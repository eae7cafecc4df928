"""Presence with real brokers: half-open connections, wills that never come, and brokers that forget."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import func, select

from tests.brokers import EmbeddedProcess, Mosquitto
from tests.running_agent import RunningAgent
from tests.server_harness import POPULATION, RunningServer, ScriptedDevice, config_of, reports
from tests.tcp_proxy import TcpProxy
from tests.waiting import eventually
from umbel import messages, signing, topics
from umbel.enrolment import EnrolmentRequest
from umbel.messages import Hello, Status
from umbel.mqtt import Link
from umbel_edge.config import Mqtt
from umbel_server.commands import roll_call
from umbel_server.devices.twins import TWIN
from umbel_server.storage.database import Device

FLEET = 3000


@pytest.fixture
def running(tmp_path: Path, broker: EmbeddedProcess | Mosquitto) -> Iterator[RunningServer]:
    made = RunningServer(tmp_path / "server", broker.port)
    yield made
    made.stop()


def is_online(running: RunningServer, device: str = "phone") -> bool:
    return running.server.devices.get(POPULATION, device).online


def test_a_device_that_changes_networks_is_online_again(
    tmp_path: Path, running: RunningServer, broker: EmbeddedProcess | Mosquitto
) -> None:
    with TcpProxy(broker.port) as proxy:
        config = msgspec.structs.replace(config_of(running, tmp_path / "phone"), mqtt=Mqtt("127.0.0.1", proxy.port))
        agent = RunningAgent(config)
        running.wait_online(1)
        for session in range(2, 5):
            proxy.change_network()
            eventually(lambda number=session: running.server.devices.get(POPULATION, "phone").epoch >= number)
            time.sleep(1.0)  # the broker has published every will that it will publish
            eventually(lambda: is_online(running))
        agent.stop()
    eventually(lambda: not is_online(running))


def test_a_device_that_is_gone_without_a_will_counts_as_offline(
    tmp_path: Path, broker: EmbeddedProcess | Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll_call, "ANSWER_SECONDS", 1.0)
    running = RunningServer(tmp_path / "server", broker.port, silence_seconds=5.0)
    quiet, gone = (ScriptedDevice(running, name, reports) for name in ("quiet", "gone"))
    running.wait_online(2)
    gone.stop()  # a clean disconnection publishes no will
    eventually(lambda: not is_online(running, "gone"))
    assert is_online(running, "quiet")  # it says nothing of itself, and answers
    quiet.stop()
    running.stop()


def test_a_device_that_does_not_answer_a_command_is_asked_at_once(
    running: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll_call, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr("umbel_server.commands.delivery.RESEND_SECONDS", 1.0)
    gone = ScriptedDevice(running, "gone", reports)
    running.wait_online(1)
    gone.stop()
    running.client.post("/v1/commands", {"population": POPULATION, "kind": "report", "devices": ["gone"]})
    eventually(lambda: not is_online(running, "gone"))


def test_an_older_agent_that_rejects_the_question_has_answered_it(running: RunningServer) -> None:
    device = ScriptedDevice(running, "phone", reports)
    device.on_hello = lambda command: device.ack(command, "rejected", "this agent cannot execute the command")
    running.wait_online(1)
    running.restart()
    running.wait_online(1)
    device.say(device.status(False), "status", retain=True)  # as a broker says it that takes the wrong will
    eventually(lambda: is_online(running))
    device.stop()


def test_what_the_broker_kept_is_no_sign_of_life(running: RunningServer) -> None:
    device = ScriptedDevice(running, "phone", reports)
    running.wait_online(1)
    device.stop()
    running.restart()  # the broker holds a status that says online
    time.sleep(1.5)
    assert not is_online(running)


class Crowd:
    """Many devices that share a connection to a broker without access rules."""

    def __init__(self, running: RunningServer, count: int) -> None:
        self.keys = {f"d{number:04}": signing.generate_key() for number in range(count)}
        self._server_key = running.state.key
        self._sequence = 0
        devices = running.server.devices
        with running.server.database.transaction() as session:
            for name, key in self.keys.items():
                request = EnrolmentRequest(name, "phone", signing.public_key(key), "", POPULATION)
                devices.register(session, POPULATION, request, {}, invited=True)
        for name in self.keys:
            devices.forget(POPULATION, name)
        port = running.state.config.mqtt.port
        command = topics.topic("+", "+", "command")
        self.link = Link("127.0.0.1", port, "crowd", (command,), self._received)
        self.link.start()
        assert self.link.wait_up(10)

    def say(self, name: str, answers: str = "") -> None:
        self._sequence += 1
        status = Status(POPULATION, name, 1, True, sequence=self._sequence, answers=answers, expires=time.time() + 600)
        topic = topics.topic(POPULATION, name, "status")
        self.link.publish(topic, messages.encode(status, self.keys[name]), retain=True)

    def _received(self, topic: str, token: bytes) -> None:
        command = messages.decode_command(token, self._server_key)
        if isinstance(command.body, Hello):
            self.say(command.device, command.id)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_server_that_connects_anew_hears_the_whole_of_a_large_fleet(
    running: RunningServer, broker: EmbeddedProcess | Mosquitto
) -> None:
    crowd = Crowd(running, FLEET)
    for name in crowd.keys:
        crowd.say(name)
    eventually(lambda: _online(running) == FLEET, 180)
    running.restart()
    eventually(lambda: _online(running) == FLEET, 180)
    broker.stop()  # it forgets every retained message
    eventually(lambda: _online(running) == 0, 60)
    broker.start()
    eventually(lambda: _online(running) == FLEET, 180)
    crowd.link.stop()


def _online(running: RunningServer) -> int:
    time.sleep(0.5)  # counting must not starve the server, which is in this process
    with running.server.database.transaction() as session:
        return session.scalar(select(func.count()).where(Device.online)) or 0


def test_a_copied_device_is_named_on_both_sides(
    tmp_path: Path, running: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(running, tmp_path / "phone")
    first = RunningAgent(config)
    running.wait_online(1)
    first.stop()
    shutil.copytree(config.state, tmp_path / "copy")
    agents = [RunningAgent(config), RunningAgent(msgspec.structs.replace(config, state=tmp_path / "copy"))]
    eventually(lambda: running.server.devices.get(POPULATION, "phone").reasons[-1:] == [TWIN], 30)
    eventually(lambda: "another device uses the identity of this one" in caplog.text)
    assert "two devices use this identity" in caplog.text
    for agent in agents:
        agent.stop()
