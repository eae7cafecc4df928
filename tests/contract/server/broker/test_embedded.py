"""The embedded broker: it is started again when it ends, and it listens on IPv6."""

import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from tests.server_harness import POPULATION, RunningServer, ScriptedDevice, reports
from tests.waiting import eventually
from umbel.mqtt import Link
from umbel_server.broker import embedded
from umbel_server.broker.embedded import EmbeddedBroker
from umbel_server.state_folder import Config, Enrolment, Http, Mqtt, init_state
from umbel_sim.demo.processes import free_port


def kill_brokers() -> None:
    """Kill the embedded broker that this process has started."""
    for child in psutil.Process().children():
        if "iotcore" in " ".join(child.cmdline()):
            os.kill(child.pid, signal.SIGKILL)


def test_a_broker_that_is_killed_is_started_again_and_the_fleet_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    init_state(
        tmp_path / "server",
        Config(
            http=Http(port=free_port(), tls=False),
            mqtt=Mqtt(port=port, embedded=True, tls=False),
            enrolment=Enrolment(open=True),
        ),
    )
    running = RunningServer(tmp_path / "server", port)
    device = ScriptedDevice(running, "phone", reports)
    running.wait_online(1)
    assert running.client.get("/v1/health") == {"ok": True, "broker": True}
    kill_brokers()
    eventually(lambda: not running.client.health().broker)
    assert running.client.health().problem
    eventually(lambda: running.client.get("/v1/health") == {"ok": True, "broker": True}, 40)
    eventually(lambda: running.server.devices.get(POPULATION, "phone").online, 40)
    assert "has ended; starting it again" in caplog.text
    device.stop()
    running.stop()


def test_a_broker_that_cannot_start_again_is_tried_until_it_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "FIRST_PAUSE", 0.1)
    broker = EmbeddedBroker("127.0.0.1", free_port())
    broker.start()
    kill_brokers()
    taken = eventually(lambda: _taken(broker.port))
    eventually(lambda: "cannot be used for the broker" in broker.problem)
    taken.close()
    eventually(lambda: not broker.problem, 40)
    assert "runs again" in caplog.text
    broker.stop()


def _taken(port: int) -> socket.socket | None:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return None


@pytest.mark.parametrize(("host", "reached"), [("::1", ("::1",)), ("::", ("::1", "127.0.0.1"))])
def test_it_listens_on_ipv6_and_on_both(host: str, reached: tuple[str, ...]) -> None:
    broker = EmbeddedBroker(host, 0)
    broker.start()
    for address in reached:
        link = Link(address, broker.port, "phone", ("x",), lambda *_: None)
        link.start()
        assert link.wait_up(10)
        link.stop()
    broker.stop()
