"""Devices whose clocks are wrong, by less than is tolerated and by more, from their start and while they work."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.brokers import EmbeddedProcess
from tests.security.wire import Wire, wired
from tests.server_harness import POPULATION
from tests.waiting import eventually
from umbel import messages
from umbel.messages import Command, Report
from umbel.plan import Plan
from umbel_server.cli import devices
from umbel_server.runs.fleet_port import candidate

PlanOf = Callable[[str], Plan]
embedded = pytest.mark.parametrize("broker", ["embedded"], indirect=True)


class Clock:
    """The time of day, and how far it is off."""

    def __init__(self, off: float = 0.0) -> None:
        self.off = off

    def __call__(self) -> float:
        return time.time() + self.off


def shown(wire: Wire) -> str:
    """What `umbel devices show` says."""
    app = typer.Typer()
    devices.add_commands(app)
    words = ["devices", "show", "phone", "-p", POPULATION, "--state", str(wire.running.state.folder)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    return " ".join(result.output.split())


def command(wire: Wire, ttl: float) -> Command:
    now, number = time.time(), wire.running.server.outbox.sequence.next()
    return Command(f"c{number}", POPULATION, "phone", now, now + ttl, Report(), sequence=number)


def answers(wire: Wire, id: str) -> list[Any]:
    """What the device said of a command; the time of its last word of all."""
    key = wire.agent.agent.state.key
    acks = [messages.decode(token, messages.Ack, key) for token in wire.said_on("ack")]
    results = [messages.decode(token, messages.Result, key) for token in wire.said_on("result")]
    return [answer for answer in (*acks, *results) if answer.command == id]


@embedded
@pytest.mark.parametrize("off", [-10.0, 10.0, 250.0])
@pytest.mark.parametrize("begins", ["so", "right"])
def test_a_clock_that_is_a_little_off_changes_nothing(
    tmp_path: Path, broker: EmbeddedProcess, plan_of: PlanOf, off: float, begins: str
) -> None:
    clock = Clock(off if begins == "so" else 0.0)
    with wired(tmp_path, broker.port, clock) as wire:
        clock.off = off
        plan = wire.running.server.plans.add(plan_of("line").path)
        run = wire.train(plan)
        assert run["state"] == "finished"
        assert len(run["attempts"]) == 1  # type: ignore[arg-type]
        # Short commands are neither over too soon nor too late.
        fresh, stale = command(wire, 5.0), command(wire, -5.0)
        for one in (fresh, stale):
            wire.say("command", messages.encode(one, wire.running.state.key))
        (answer,) = eventually(lambda: answers(wire, fresh.id))
        assert isinstance(answer, messages.Result)
        assert abs(answer.at - time.time() - off) < 5
        (answer,) = eventually(lambda: answers(wire, stale.id))
        assert answer.state == "expired"
        wire.stop_agent()
        wire.start_agent()
        eventually(lambda: abs(float(str(wire.device["skew"])) - off) < 5)
        way = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the server's"
        assert f"clock {way}" in shown(wire)
        assert "tolerated" not in shown(wire)


@embedded
@pytest.mark.parametrize("off", [-3600.0, 3600.0])
def test_a_clock_that_jumps_too_far_is_reported_and_takes_no_work_until_it_is_set(
    tmp_path: Path, broker: EmbeddedProcess, plan_of: PlanOf, caplog: pytest.LogCaptureFixture, off: float
) -> None:
    clock = Clock()
    way = f"3600 s {'ahead of' if off > 0 else 'behind'} the server's"
    with wired(tmp_path, broker.port, clock) as wire:
        assert wire.ask("report")["state"] == "done"
        clock.off = off
        refused = wire.ask("report")
        assert (refused["state"], way in str(refused["reason"])) == ("declined", True)
        eventually(lambda: abs(float(str(wire.device["skew"])) - off) < 5)
        for _ in range(3):
            assert wire.ask("report")["state"] == "declined"
        eventually(lambda: any(way in reason for reason in wire.device["reasons"]))  # type: ignore[attr-defined]
        assert candidate(wire.running.server.devices.get(POPULATION, "phone")).reasons  # no run chooses it
        assert f"{way} (300 s are tolerated); set it" in shown(wire)
        assert caplog.text.count("the clock of device test/phone is") == 1
        assert caplog.text.count("the device takes no work until then") == 1
        assert wire.device["online"]
        clock.off = 0.0
        eventually(lambda: wire.ask("report")["state"] == "done")
        eventually(lambda: abs(float(str(wire.device["skew"]))) < 5)
        assert "conditions eligible last heard" in shown(wire)


@embedded
@pytest.mark.parametrize("off", [-3600.0, 3600.0])
def test_a_device_that_starts_with_a_wrong_clock_waits_until_it_is_set_and_is_reported(
    tmp_path: Path, broker: EmbeddedProcess, caplog: pytest.LogCaptureFixture, off: float
) -> None:
    clock = Clock()
    with wired(tmp_path, broker.port, clock) as wire:
        wire.stop_agent()
        clock.off = off
        wire.agent = type(wire.agent)(wire.config, clock)
        eventually(lambda: "set the device's clock" in caplog.text)
        eventually(lambda: abs(float(str(wire.device["skew"])) - off) < 5)
        assert caplog.text.count("the clock of device test/phone is") == 1
        assert not wire.device["online"]
        assert "set it" in shown(wire)
        wire.restart()
        assert abs(float(str(wire.device["skew"])) - off) < 5
        clock.off = 0.0
        wire.running.wait_online(1)
        assert abs(float(str(wire.device["skew"]))) < 5
        assert wire.ask("report")["state"] == "done"


@embedded
def test_a_command_that_is_old_is_too_late_for_a_device_whose_clock_was_set_back(
    tmp_path: Path, broker: EmbeddedProcess
) -> None:
    clock = Clock()
    with wired(tmp_path, broker.port, clock) as wire:
        clock.off = -200.0  # within what is tolerated
        old = command(wire, -100.0)
        wire.say("command", messages.encode(old, wire.running.state.key))
        (answer,) = eventually(lambda: answers(wire, old.id))
        assert answer.state == "expired"
