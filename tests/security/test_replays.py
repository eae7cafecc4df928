"""A broker that says again what was said, on the same topic and on others, before and after both sides were started again."""

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.brokers import EmbeddedProcess, Mosquitto
from tests.running_agent import RunningAgent
from tests.security.wire import CHANNELS, Wire, wired
from tests.server_harness import POPULATION
from tests.waiting import eventually
from umbel import messages
from umbel.messages import Ack, Status
from umbel.plan import Plan
from umbel_edge.device.database import DATABASE
from umbel_server.storage.database import Assignment, Command, Device, Run

PlanOf = Callable[[str], Plan]
LOST = "older than this device's memory"


@pytest.fixture
def wire(tmp_path: Path, broker: EmbeddedProcess | Mosquitto) -> Iterator[Wire]:
    with wired(tmp_path, broker.port, time.time) as made:
        yield made


def state(wire: Wire) -> list[object]:
    """Everything that a message could change: what the server has in its database, and what the device has done."""
    rows: list[object] = [wire.agent.agent.state.rounds]
    with wire.running.server.database.transaction() as session:
        for table in (Command, Assignment, Run, Device):
            for row in session.scalars(select(table)):
                said = {name: value for name, value in vars(row).items() if not name.startswith("_")}
                said.pop("last_seen", None)  # a repeated word of the newest session still shows that it is there
                rows.append(said)
    return rows


def test_what_was_said_does_nothing_when_it_is_said_again(
    wire: Wire, plan_of: PlanOf, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    plan = wire.running.server.plans.add(plan_of("line").path)
    assert wire.train(plan)["state"] == "finished"
    assert wire.ask("report")["state"] == "done"
    assert wire.ask("infer", inputs=wire.running.client.put_blob(b"x", POPULATION))["state"] == "rejected"
    trainings = caplog.text.count("training assignment")

    def say_all_again() -> None:
        said = [(channel, message) for channel in CHANNELS for message in wire.said_on(channel)]
        assert {channel for channel, _ in said} == set(CHANNELS)
        epoch = int(str(wire.device["epoch"]))
        wills = [Status(POPULATION, "phone", before, False) for before in range(epoch)]
        key = wire.agent.agent.state.key
        old = Ack("none", POPULATION, "phone", "done", 0.0, expires=time.time() - 1000)
        said += [("status", messages.encode(will, key)) for will in wills] + [("ack", messages.encode(old, key))]
        before = state(wire)
        for _, message in said:
            for channel in CHANNELS:
                wire.say(channel, message)
        wire.settle(caplog)
        assert state(wire) == before
        assert wire.device["online"]

    say_all_again()
    wire.stop_agent()
    wire.start_agent()
    say_all_again()
    wire.restart()
    wire.running.wait_online(1)
    say_all_again()
    assert caplog.text.count("training assignment") == trainings
    assert "signed as" in caplog.text
    assert "expired" in caplog.text
    assert wire.ask("report")["state"] == "done"


def backup(folder: Path, to: Path) -> None:
    """A copy of a device's state folder, made while its agent runs."""
    to.mkdir()
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith(DATABASE):
            shutil.copy(path, to)
    with closing(sqlite3.connect(folder / DATABASE)) as source, closing(sqlite3.connect(to / DATABASE)) as copy:
        source.backup(copy)


def restore(wire: Wire, copy: Path) -> None:
    shutil.rmtree(wire.config.state)
    shutil.copytree(copy, wire.config.state)


def replay_refused(wire: Wire, token: bytes, rounds: int) -> None:
    """The device says that it may have executed the command already, and does not execute it."""
    key = wire.agent.agent.state.key

    def refused() -> list[Ack]:
        wire.say("command", token)  # more than once, as it complains once a second at most
        acks = [messages.decode(said, Ack, key) for said in wire.said_on("ack")]
        return [ack for ack in acks if ack.state == "rejected" and LOST in ack.reason]

    assert eventually(refused)
    assert wire.agent.agent.state.rounds == rounds


@pytest.mark.parametrize("lost", ["restored", "restored within a session", "database lost"])
def test_a_device_that_lost_its_memory_does_not_execute_what_it_may_have_executed(
    wire: Wire, plan_of: PlanOf, tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: str
) -> None:
    copy = tmp_path / "copy"
    backup(wire.config.state, copy)
    if lost == "restored":  # else the copy has all that was said but its last answers
        wire.stop_agent()
        wire.start_agent()
    plan = wire.running.server.plans.add(plan_of("line").path)
    wire.train(plan, rounds=1)
    assert wire.agent.agent.state.rounds == 1
    with wire.running.server.database.transaction() as session:
        token = session.scalars(select(Command.token).where(Command.kind == "train")).one()
    wire.stop_agent()
    if lost == "database lost":
        for path in wire.config.state.glob(DATABASE + "*"):
            path.unlink()
    else:
        restore(wire, copy)
    wire.start_agent()
    assert "knows of later answers than this device remembers" in caplog.text
    replay_refused(wire, token, rounds=0)
    assert wire.ask("report")["state"] == "done"
    wire.train(plan, rounds=1)
    assert wire.agent.agent.state.rounds == 1
    # Also after another start, when nothing is missing any more.
    caplog.clear()
    wire.stop_agent()
    wire.start_agent()
    assert "than this device remembers" not in caplog.text
    replay_refused(wire, token, rounds=1)


def test_a_device_that_is_enrolled_anew_does_not_execute_what_was_for_the_one_before(
    wire: Wire, plan_of: PlanOf
) -> None:
    plan = wire.running.server.plans.add(plan_of("line").path)
    wire.train(plan, rounds=1)
    with wire.running.server.database.transaction() as session:
        token = session.scalars(select(Command.token).where(Command.kind == "train")).one()
    wire.stop_agent()
    for what in ("revoke", "delete"):
        wire.running.client.post(f"/v1/devices/{POPULATION}/phone/{what}", {} if what == "revoke" else None)
    shutil.rmtree(wire.config.state)
    wire.agent = RunningAgent(wire.config)
    wire.running.wait_online(1)
    wire.heard.clear()
    replay_refused(wire, token, rounds=0)


def test_an_accepted_command_that_is_accepted_again_is_no_news(wire: Wire) -> None:
    server = wire.running.server
    wire.stop_agent()
    with server.database.transaction() as session:
        id = server.outbox.add(session, POPULATION, "phone", messages.Report(), 600).id
    for state, news in (
        ("accepted", True),
        ("accepted", False),
        ("failed", True),
        ("done", False),
        ("accepted", False),
    ):
        with server.database.transaction() as session:
            ack = Ack(id, POPULATION, "phone", state, 0.0)  # type: ignore[arg-type]
            assert (server.outbox.acknowledge(session, ack) is not None) == news
    assert server.outbox.get(id).state == "failed"
