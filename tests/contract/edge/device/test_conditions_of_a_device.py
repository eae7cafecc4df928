"""A real agent whose conditions break, by readings from a file, and the reasons that the server knows."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.brokers import EmbeddedProcess
from tests.contract.edge.test_agent import Bench
from tests.running_agent import RunningAgent
from tests.server_harness import POPULATION, RunningServer, config_of
from tests.waiting import eventually
from umbel import messages, tensors, topics
from umbel.conditions import Readings, Rules
from umbel.messages import Blob, Evaluate, Train
from umbel.mqtt import Link
from umbel.plan import Plan

PlanOf = Callable[[str], Plan]
FINE = Readings(battery=0.9, charging=True, metered=False, load=0.1, temperature=30.0, hour=23)
LOW = Readings(battery=0.12, charging=False)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    broker = EmbeddedProcess()
    broker.start()
    running = RunningServer(tmp_path / "server", broker.port)
    config = msgspec.structs.replace(
        config_of(running, tmp_path / "phone"),
        conditions=Rules(min_battery=0.3),
        readings=tmp_path / "phone" / "readings.json",
    )
    say(config.readings, FINE)
    made = Bench(running, config, RunningAgent(config))
    ours = tuple(topics.topic(POPULATION, "phone", channel) for channel in ("ack", "result"))
    made.ear = Link("127.0.0.1", broker.port, "ear", ours, made.heard)
    made.ear.start()
    assert made.ear.wait_up(10)
    running.wait_online(1)
    yield made
    made.agent.stop()
    made.ear.stop()
    running.stop()
    broker.stop()


def say(file: Path | None, readings: Readings | bytes) -> None:
    """Replace the file at once, as a program that measures would."""
    assert file is not None
    fresh = file.with_suffix(".new")
    fresh.write_bytes(readings if isinstance(readings, bytes) else msgspec.json.encode(readings))
    os.replace(fresh, file)


def trains(bench: Bench, plan_of: PlanOf, requires: Rules = Rules(), epochs: int = 1) -> Train:  # noqa: B008
    plan = bench.running.server.plans.add(plan_of("line").path)
    weights = Blob.of(tensors.dump(plan.initial_weights()))
    blob = bench.running.give(bench.running.server.plans.blob(plan))
    return Train("a1", "r1", 1, blob, weights, time.time() + 60, 0.05, epochs=epochs, requires=requires)


def reasons(bench: Bench) -> list[str]:
    return bench.running.server.devices.get(POPULATION, "phone").reasons


def test_a_device_declines_work_while_its_own_rules_or_the_runs_do_not_hold(bench: Bench, plan_of: PlanOf) -> None:
    good = bench.command(trains(bench, plan_of, Rules(unmetered=True, hours="22-6")))
    bench.send(messages.encode(good, bench.running.state.key))
    eventually(lambda: bench.results)
    say(bench.config.readings, LOW)
    low = bench.command(trains(bench, plan_of, Rules(charging=True)))
    bench.send(messages.encode(low, bench.running.state.key))
    ack = bench.ack_of(low.id)
    assert (ack.state, ack.reason) == ("declined", "battery 0.12 < 0.3, not charging")
    body = trains(bench, plan_of)
    evaluates = Evaluate("a2", "r1", 1, body.plan, body.weights, body.deadline, Rules(min_examples=100))
    say(bench.config.readings, FINE)
    few = bench.command(evaluates)
    bench.send(messages.encode(few, bench.running.state.key))
    assert bench.ack_of(few.id).reason == "examples 6 < 100"


def test_a_condition_that_breaks_while_training_ends_it_within_a_batch(bench: Bench, plan_of: PlanOf) -> None:
    long = bench.command(trains(bench, plan_of, Rules(max_temperature=40), epochs=10**9))
    bench.send(messages.encode(long, bench.running.state.key))
    eventually(lambda: any(ack.command == long.id and ack.state == "accepted" for ack in bench.acks))
    say(bench.config.readings, msgspec.structs.replace(FINE, temperature=51.5))
    ack = bench.ack_of(long.id)
    assert (ack.state, ack.reason) == ("failed", "temperature: 51.5 C > 40 C")


def test_a_damaged_file_of_readings_is_one_reason_and_no_crash(bench: Bench, plan_of: PlanOf) -> None:
    for damaged, sentence in (
        (b'{"battery": ', "truncated"),
        (b'{"moon": 1}', "unknown field"),
        (b"[]", "Expected"),
        (b'{"battery": 12}', "between 0 and 1"),
    ):
        say(bench.config.readings, damaged)
        command = bench.command(trains(bench, plan_of))
        bench.send(messages.encode(command, bench.running.state.key))
        ack = bench.ack_of(command.id)
        assert (ack.state, ack.reason.startswith("readings readings.json: ")) == ("declined", True)
        assert sentence in ack.reason
    say(bench.config.readings, FINE)
    good = bench.command(trains(bench, plan_of))
    bench.send(messages.encode(good, bench.running.state.key))
    eventually(lambda: bench.results)


def test_the_server_knows_why_a_device_may_not_work_and_how_many_examples_it_has(bench: Bench) -> None:
    assert reasons(bench) == []
    assert bench.running.server.devices.get(POPULATION, "phone").examples == 6
    say(bench.config.readings, LOW)
    eventually(lambda: reasons(bench) == ["battery 0.12 < 0.3"])
    shown = bench.running.client.get(f"/v1/devices/{POPULATION}/phone")
    assert shown["reasons"] == ["battery 0.12 < 0.3"]
    say(bench.config.readings, FINE)
    np.savez(bench.config.examples, allow_pickle=False, x=np.zeros((9, 1), np.float32), y=np.zeros((9, 1), np.float32))
    eventually(lambda: bench.running.server.devices.get(POPULATION, "phone").examples == 9)
    eventually(lambda: reasons(bench) == [])
