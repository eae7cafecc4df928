"""Things that end in the middle of a round: the broker, the server."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.brokers import EmbeddedProcess
from tests.contract.server.runs.test_fleet_grid import delta_of, trained
from tests.server_harness import POPULATION, RunningServer, ScriptedDevice
from tests.waiting import eventually
from umbel import tensors
from umbel.messages import Command, Train, Trained
from umbel.plan import Plan
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.runs.settings import RunSettings
from umbel_server.server import Server


def test_a_round_ends_when_the_broker_goes_away_in_the_middle(tmp_path: Path, plan_of: Callable[[str], Plan]) -> None:
    broker = EmbeddedProcess()
    broker.start()
    running = RunningServer(tmp_path / "server", broker.port)
    plan = running.server.plans.add(plan_of("line").path)
    device = ScriptedDevice(running, "phone", lambda c: None)
    running.wait_online(1)
    id = running.server.runs.start(
        POPULATION, plan.sha256, RunSettings(rounds=1, policy=RoundPolicy(deadline=1.0, attempts=2, backoff=0.1))
    ).id
    eventually(lambda: device.commands)
    broker.stop()
    eventually(lambda: running.server.runs.get(id).state != "running", 20)
    run = running.client.get(f"/v1/runs/{id}")
    assert run["state"] == "paused"
    assert "1 device is needed and 0 can train (1 offline)" in run["reason"]
    assert {a["state"] for a in run["assignments"]} == {"expired"}
    device.stop()
    running.stop()


def test_a_round_is_finished_by_a_device_that_comes_back_through_a_forgetful_broker(
    tmp_path: Path, plan_of: Callable[[str], Plan]
) -> None:
    broker = EmbeddedProcess()
    broker.start()
    running = RunningServer(tmp_path / "server", broker.port)
    plan = running.server.plans.add(plan_of("line").path)
    seen: list[str] = []

    def second_time(command: Command) -> Trained | None:
        if not isinstance(command.body, Train):
            return None
        seen.append(command.id)
        return trained(command, delta_of(1, 1, plan)) if len(seen) > 1 else None

    device = ScriptedDevice(running, "phone", second_time)
    running.wait_online(1)
    id = running.server.runs.start(POPULATION, plan.sha256, RunSettings(rounds=1, policy=RoundPolicy(deadline=60.0))).id
    eventually(lambda: seen)
    broker.stop()
    running.wait_online(0)
    device.epoch += 1
    broker.start()
    eventually(lambda: running.server.runs.get(id).state == "finished", 60)
    assert len(set(seen)) == 1
    device.stop()
    running.stop()


def test_a_run_goes_on_from_its_newest_checkpoint_after_the_server_was_restarted(
    tmp_path: Path, plan_of: Callable[[str], Plan]
) -> None:
    broker = EmbeddedProcess()
    broker.start()
    running = RunningServer(tmp_path / "server", broker.port)
    plan = running.server.plans.add(plan_of("line").path)
    hold = True

    def work(command: Command) -> Trained | None:
        if not isinstance(command.body, Train) or (command.body.round == 3 and hold):
            return None
        return trained(command, delta_of(1, command.body.round, plan))

    device = ScriptedDevice(running, "phone", work)
    running.wait_online(1)
    settings = RunSettings(strategy="fedavgm", options={"server_momentum": 0.5}, rounds=4)
    id = running.server.runs.start(POPULATION, plan.sha256, settings).id
    eventually(lambda: running.server.runs.get(id).round == 2)
    eventually(lambda: any(isinstance(c.body, Train) and c.body.round == 3 for c in device.commands))
    running.server.stop()
    hold = False
    again = Server(running.state)
    again.start()
    eventually(lambda: again.runs.get(id).state == "finished", 40)
    run = again.runs.show(id, 3)
    assert [c.round for c in run.checkpoints] == [0, 1, 2, 3, 4]
    # The round that was under way went on: no second attempt, no second assignment.
    assert [a.state for a in run.attempts] == ["committed"]
    assert [a.state for a in run.assignments] == ["folded"]
    weights, momentum = plan.initial_weights(), {name: np.float32(0) for name in plan.initial_weights()}
    for number in range(1, 5):
        delta = delta_of(1, number, plan)
        momentum = {name: np.float32(0.5) * momentum[name] - delta[name] for name in weights}
        weights = {name: weights[name] - momentum[name] for name in weights}
    final = tensors.load(again.blobs.get(again.runs.checkpoint(id).weights))
    assert all(np.allclose(final[name], weights[name], atol=1e-6) for name in weights)
    device.stop()
    running.server = again
    running.stop()
    broker.stop()
