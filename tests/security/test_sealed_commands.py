"""Commands that leave only sealed for their device: what somebody at the broker can read, and that all goes on as before."""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.brokers import EmbeddedProcess, Mosquitto
from tests.contract.edge.test_agent import PlanOf
from tests.security.wire import Wire, readable, wired
from tests.server_harness import POPULATION, RunningServer, ScriptedDevice
from tests.settled_commands import settled
from tests.waiting import eventually
from umbel import sealing, signing, topics
from umbel.errors import UmbelError
from umbel.messages import Standing, Status
from umbel.mqtt import Link
from umbel_server.state_folder import CONFIG, Config, init_state, open_state

KNOWN = b'"learning_rate":', b'"examples":6', b'"weights":', b'"outcome":', b'"assignment":'
"""What is in a training command and in its result."""


@pytest.fixture
def wire(tmp_path: Path, broker: EmbeddedProcess | Mosquitto) -> Iterator[Wire]:
    with wired(tmp_path, broker.port, time.time, encrypt_commands=True) as made:
        yield made


@pytest.fixture
def open_wire(tmp_path: Path, broker: EmbeddedProcess | Mosquitto) -> Iterator[Wire]:
    with wired(tmp_path, broker.port, time.time) as made:
        yield made


def read(wire: Wire) -> set[bytes]:
    """The known bytes that somebody who hears everything can find in commands and their answers."""
    said = [readable(token) for channel in ("command", "ack", "result") for token in wire.said_on(channel)]  # type: ignore[arg-type]
    return {known for known in KNOWN for text in said if known in text}


def test_in_a_population_that_asks_for_it_nobody_reads_along(wire: Wire, plan_of: PlanOf) -> None:
    plan = wire.running.server.plans.add(plan_of("line").path)
    run = wire.train(plan, rounds=3)
    assert run["state"] == "finished"
    assert wire.ask("report")["outcome"]["rounds"] == 3  # type: ignore[index]
    assert len(wire.said_on("result")) == 4
    for channel in ("command", "ack", "result"):
        assert all(sealing.is_sealed(token) for token in wire.said_on(channel))  # type: ignore[arg-type]
    assert read(wire) == set()


def test_a_run_can_ask_for_it_alone(open_wire: Wire, plan_of: PlanOf) -> None:
    plan = open_wire.running.server.plans.add(plan_of("line").path)
    run = open_wire.train(plan, encrypt_commands=True)
    assert (run["state"], run["settings"]["encrypt_commands"]) == ("finished", True)  # type: ignore[index]
    assert read(open_wire) == set()
    open_wire.train(plan)
    assert read(open_wire) == set(KNOWN)  # so this test can see what it looks for


def test_a_command_that_waited_is_sealed_for_the_process_that_takes_it(wire: Wire) -> None:
    """Each process of a device has a key of its own; the server's is the same after it was started again."""
    before = wire.agent.agent.messages.agreement
    wire.stop_agent()
    sent = wire.running.client.post("/v1/commands", {"population": POPULATION, "kind": "report"})
    old = eventually(lambda: wire.said_on("command"))[-1]
    wire.restart()
    wire.start_agent()
    (command,) = settled(wire.running.client, sent, 20)
    assert command["state"] == "done"
    assert b'"report"' in readable(sealing.unseal(old, before))
    assert wire.agent.agent.messages.agreement.as_dict() != before.as_dict()
    assert read(wire) == set()


def test_a_message_that_does_not_open_is_dropped_and_the_device_goes_on(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    wire.say("command", sealing.seal(b"a.b.c", signing.generate_key()))
    wire.say("command", sealing.seal(b"a.b.c", wire.agent.agent.messages.agreement))
    eventually(lambda: caplog.text.count("without a valid signature") == 2)
    wire.say("ack", sealing.seal(b"a.b.c", signing.generate_key()))
    eventually(lambda: "one that does not open" in caplog.text)
    assert wire.ask("report")["state"] == "done"


def test_without_a_key_to_seal_with_nothing_leaves(
    tmp_path: Path, broker: EmbeddedProcess | Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    running = RunningServer(tmp_path / "server", broker.port, encrypt_commands=True)
    heard: list[bytes] = []
    device = ScriptedDevice(running, "phone", lambda command: None)
    topic = topics.topic(POPULATION, "phone", "command")
    ear = Link("127.0.0.1", broker.port, "ear", (topic,), lambda _, token: heard.append(token))
    ear.start()
    try:
        running.wait_online(1)
        assert ear.wait_up(10)
        running.client.post("/v1/commands", {"population": POPULATION, "kind": "report"})
        running.server.exchange.send([running.server.outbox.notice(POPULATION, "phone", Standing("active"))])
        eventually(lambda: caplog.text.count("it may not leave in the clear") >= 2)
        key = signing.generate_key()
        off_curve = signing.PublicKey("EC", "P-256", "AAAA", "BBBB")
        for agreement, epoch in ((off_curve, 2), (signing.public_key(key), 3)):
            said = caplog.text.count("it may not leave in the clear")
            device.epoch = epoch
            online = msgspec.structs.replace(device.status(True), agreement=agreement)
            device.say(online, "status", retain=True)
            if agreement is off_curve:
                eventually(lambda said=said: caplog.text.count("it may not leave in the clear") > said)  # type: ignore[misc]
        eventually(lambda: heard)
        assert all(sealing.is_sealed(token) for token in heard)
        assert b'"report"' in readable(sealing.unseal(heard[0], key))
    finally:
        ear.stop()
        device.stop()
        running.stop()


def test_the_setting_of_a_population_is_a_table_of_its_own(tmp_path: Path) -> None:
    state = init_state(tmp_path / "state", Config())
    path = state.folder / CONFIG
    written = path.read_text()
    path.write_text(written + "[populations.home]\nencrypt_commands = true\n[populations.lab]\n")
    assert open_state(state.folder).config.encrypted == {"home"}
    path.write_text(written + '[populations."a/b"]\nencrypt_commands = true\n')
    with pytest.raises(UmbelError, match="a population should be"):
        open_state(state.folder)
    path.write_text(written + "[populations.home]\nencrypt = true\n")
    with pytest.raises(UmbelError, match="encrypt"):
        open_state(state.folder)


def test_statuses_tell_the_key_of_the_newest_session_only(open_wire: Wire) -> None:
    """An old status, said again, cannot make the server seal for a process that is gone."""
    devices = open_wire.running.server.devices
    old, new = (signing.public_key(signing.generate_key()) for _ in range(2))

    def told(epoch: int, key: signing.PublicKey) -> dict[str, object]:
        devices.heard(Status(POPULATION, "phone", epoch, True, agreement=key, expires=time.time() + 60))
        known = devices.agreement(POPULATION, "phone")
        assert known is not None
        return dict(known.as_dict(private=False))

    assert told(1000, old)["x"] == old.x
    assert told(1001, new)["x"] == new.x
    assert told(1000, old)["x"] == new.x
