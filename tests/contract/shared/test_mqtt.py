"""The MQTT link against real brokers."""

import contextlib
import errno
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.brokers import EmbeddedProcess, Mosquitto, mosquitto_program
from tests.tcp_proxy import TcpProxy
from tests.waiting import eventually
from umbel.mqtt import PUBLISH_OVERHEAD, Link, Will
from umbel_sim.demo.processes import free_port

Broker = EmbeddedProcess | Mosquitto


class Listener:
    def __init__(self, port: int, name: str, topics: tuple[str, ...]) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.link = Link("127.0.0.1", port, name, topics, lambda topic, data: self.messages.append((topic, data)))
        self.link.start()


def test_messages_arrive_also_after_the_broker_was_killed_and_started_again(broker: Broker) -> None:
    listener, sender = Listener(broker.port, "listener", ("a/+",)), Listener(broker.port, "sender", ())
    assert listener.link.wait_up(10)
    assert sender.link.wait_up(10)
    eventually(lambda: sender.link.publish("a/b", b"one") and listener.messages)
    broker.stop()
    eventually(lambda: not listener.link.is_up and not sender.link.is_up)
    assert sender.link.publish("a/b", b"lost") is False
    broker.start()
    eventually(lambda: listener.link.is_up and sender.link.is_up, 60)
    eventually(lambda: sender.link.publish("a/b", b"two") and (("a/b", b"two") in listener.messages))
    assert ("a/b", b"lost") not in listener.messages
    listener.link.stop()
    sender.link.stop()


def test_the_last_will_is_published_when_a_device_vanishes_and_kept_for_those_who_come_later(broker: Broker) -> None:
    early = Listener(broker.port, "early", ("status/#",))
    assert early.link.wait_up(10)
    proxy, wills = TcpProxy(broker.port), [Will("status/device", b"gone")]
    device = Link("127.0.0.1", proxy.port, "device", (), lambda *_: None, will=lambda: wills.pop() if wills else None)
    device.start()
    assert device.wait_up(10)
    proxy.break_all()
    eventually(lambda: ("status/device", b"gone") in early.messages)
    late = Listener(broker.port, "late", ("status/#",))
    eventually(lambda: ("status/device", b"gone") in late.messages)
    for link in (early.link, late.link, device):
        link.stop()
    proxy.close()


def test_a_clean_stop_says_farewell(broker: Broker) -> None:
    listener = Listener(broker.port, "listener", ("status/#",))
    assert listener.link.wait_up(10)
    device = Link("127.0.0.1", broker.port, "device", (), lambda *_: None, will=lambda: Will("status/device", b"died"))
    device.start()
    assert device.wait_up(10)
    device.stop(farewell=Will("status/device", b"goodbye"))
    eventually(lambda: listener.messages)
    assert [data for _, data in listener.messages] == [b"goodbye"]
    listener.link.stop()


def test_a_link_waits_for_a_broker_that_is_not_there_yet_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    broker = EmbeddedProcess()
    up = threading.Event()
    link = Link("127.0.0.1", broker.port, "early-bird", (), lambda *_: None, on_up=up.set)
    link.start()
    eventually(lambda: "trying again until it answers" in caplog.text)
    broker.start()
    assert up.wait(30)
    link.stop()
    broker.stop()


def test_an_exception_in_a_callback_does_not_end_the_link(broker: Broker) -> None:
    def explode(_topic: str, _data: bytes) -> None:
        calls.append(1)
        raise RuntimeError("a bug in a callback")

    calls: list[int] = []
    link = Link("127.0.0.1", broker.port, "clumsy", ("x",), explode)
    link.start()
    assert link.wait_up(10)
    eventually(lambda: link.publish("x", b"1") and calls)
    before = len(calls)
    eventually(lambda: link.publish("x", b"2") and len(calls) > before)
    link.stop()


def test_stop_ends_a_link_that_never_connected() -> None:
    link = Link("127.0.0.1", free_port(), "lonely", (), lambda *_: None)
    link.start()
    link.stop()
    assert "mqtt-lonely" not in {thread.name for thread in threading.enumerate()}
    link.stop()  # a second time there is nobody left to wake


def test_an_error_before_a_connection_does_not_end_the_link(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """As when the number of the session cannot be written because the disk is full."""
    tried: list[int] = []

    def will() -> Will | None:
        tried.append(1)
        if len(tried) < 3:
            raise OSError(errno.ENOSPC, "no space left on device")
        return None

    link = Link("127.0.0.1", broker.port, "full", (), lambda *_: None, will=will)
    link.start()
    assert link.wait_up(20)
    assert len(tried) == 3
    assert "no space left on device" in caplog.text
    link.stop()


def test_a_link_that_is_cut_again_and_again_comes_back_quickly_as_long_as_work_was_possible(broker: Broker) -> None:
    with TcpProxy(broker.port) as proxy:
        link = Link("127.0.0.1", proxy.port, "phone", ("x",), lambda *_: None)
        link.start()
        away = 0.0
        for _ in range(8):
            began = time.monotonic()
            assert link.wait_up(20)
            away += time.monotonic() - began
            time.sleep(0.7)
            proxy.break_all()
            eventually(lambda: not link.is_up)
        link.stop()
    assert away < 8 * 1.0


def test_a_link_that_is_never_let_in_backs_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = Link("127.0.0.1", listener.getsockname()[1], "phone", ("x",), lambda *_: None)
        link.start()
        until, tries = time.monotonic() + 4.0, 0
        listener.settimeout(0.2)
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                listener.accept()[0].close()
                tries += 1
        link.stop()
    assert 2 <= tries <= 8


@pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")
def test_a_message_that_the_broker_does_not_take_is_not_sent_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_packet_size 2000\n")
    broker = Mosquitto(tmp_path, config, port)
    broker.start()
    listener = Listener(port, "listener", ("a",))
    assert listener.link.wait_up(10)
    assert not listener.link.publish("a", bytes(2000))
    assert "takes at most 2000 bytes" in caplog.text
    largest = bytes(2000 - len("a") - PUBLISH_OVERHEAD)
    assert listener.link.publish("a", largest)
    eventually(lambda: listener.messages == [("a", largest)])
    assert listener.link.is_up
    listener.link.stop()
    broker.stop()
