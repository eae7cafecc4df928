"""FleetGrid against a real broker, server and devices that speak the protocol: strategies, refusals, deadlines."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg

from tests.brokers import EmbeddedProcess, Mosquitto
from tests.server_harness import POPULATION, RunningServer, ScriptedDevice
from tests.waiting import eventually
from umbel import tensors
from umbel.messages import Ack, Blob, Cancel, Command, Evaluate, Evaluated, Outcome, Train, Trained
from umbel.plan import Plan
from umbel.tensors import Tensors
from umbel_server.devices.register import node_id
from umbel_server.flower import internals
from umbel_server.flower import messages as flower_messages
from umbel_server.flower.strategies import STRATEGIES, make_strategy
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.runs.settings import RunSettings

PlanOf = Callable[[str], Plan]
DEVICES, ROUNDS = 5, 3


@pytest.fixture
def running(tmp_path: Path, broker: EmbeddedProcess | Mosquitto) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path / "server", broker.port)
    yield server
    server.stop()


def delta_of(device: int, number: int, plan: Plan) -> Tensors:
    rng = np.random.default_rng([device, number])
    return {s.name: rng.normal(0, 0.1, s.shape).astype(np.float32) for s in plan.manifest.weights}


def trained(command: Command, delta: Tensors, examples: int = 10, loss: float = 0.5) -> Trained:
    assert isinstance(command.body, Train)
    return Trained(command.body.assignment, Blob.of(tensors.dump(delta)), examples, {"loss": loss})


def oracle(strategy: FedAvg, plan: Plan) -> list[Tensors]:
    """The same strategy given the same updates directly, without any grid of ours."""
    internals.set_identity()
    weights, history = plan.initial_weights(), []
    nodes = sorted((node_id(POPULATION, f"device-{i}"), i) for i in range(DEVICES))

    class Nodes:
        def get_node_ids(self) -> list[int]:
            return [node for node, _ in nodes]

    for number in range(1, ROUNDS + 1):
        messages = strategy.configure_train(
            number,
            flower_messages.array_record(weights),
            ConfigRecord(),
            Nodes(),  # type: ignore[arg-type]
        )
        by_node = {message.metadata.dst_node_id: message for message in messages}
        replies = []
        for node, device in nodes:
            delta = delta_of(device, number, plan)
            local = {name: weights[name] + delta[name] for name in weights}
            metrics = {"num-examples": float(10 + device), "loss": 0.1 * (device + 1)}
            internals.give_id(by_node[node])
            replies.append(flower_messages.reply(by_node[node], local, metrics))
        arrays, _ = strategy.aggregate_train(number, replies)
        assert arrays is not None
        aggregated = flower_messages.tensors_of(arrays)
        weights = {name: aggregated[name].astype(np.float32) for name in weights}
        history.append(weights)
    return history


OPTIONS: dict[str, dict[str, float]] = {
    "fedprox": {"proximal_mu": 0.1},
    "fedavgm": {"server_learning_rate": 0.9, "server_momentum": 0.5},
    "krum": {"num_malicious_nodes": 1},
    "multikrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "qfedavg": {"q": 0.2},
}


@pytest.mark.long
@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
def test_every_strategy_gives_on_the_fleet_what_it_gives_directly(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)

    def work_of(device: int) -> Callable[[Command], Outcome | None]:
        def work(command: Command) -> Outcome | None:
            if not isinstance(command.body, Train):
                return None
            delta = delta_of(device, command.body.round, plan)
            return trained(command, delta, 10 + device, 0.1 * (device + 1))

        return work

    devices = [ScriptedDevice(running, f"device-{i}", work_of(i)) for i in range(DEVICES)]
    running.wait_online(DEVICES)
    for name in STRATEGIES:
        options = OPTIONS.get(name, {})
        policy = RoundPolicy(quorum=DEVICES, deadline=20)
        settings = RunSettings(strategy=name, options=options, rounds=ROUNDS, policy=policy)
        id = running.server.runs.start(POPULATION, plan.sha256, settings).id
        eventually(lambda id=id: running.server.runs.get(id).state != "running", 60)  # type: ignore[misc]
        run = running.client.get(f"/v1/runs/{id}")
        assert (run["state"], run["reason"]) == ("finished", "its last round is committed"), name
        expected = oracle(make_strategy(name, options, plan.manifest.learning_rate), plan)
        for checkpoint, weights in zip(run["checkpoints"][1:], expected, strict=True):
            ours = tensors.load(running.server.blobs.get(checkpoint["weights"]))
            for key, value in weights.items():
                # Ours is summed in float64, in any order: it may differ by the rounding of Flower's float32 sums.
                np.testing.assert_allclose(ours[key], value, rtol=2e-6, atol=1e-6, err_msg=f"{name} {key}")
        assert {a["state"] for a in run["assignments"]} == {"folded"}
    for device in devices:
        device.stop()


def start(running: RunningServer, plan: Plan, policy: dict[str, object], **settings: object) -> str:
    wanted = msgspec.convert(
        {"rounds": 1, "policy": {"deadline": 5.0, "backoff": 0.1, "attempts": 3, **policy}, **settings}, RunSettings
    )
    return running.server.runs.start(POPULATION, plan.sha256, wanted).id


def ended(running: RunningServer, id: str) -> dict[str, object]:
    eventually(lambda: running.server.runs.get(id).state != "running", 60)
    return running.client.get(f"/v1/runs/{id}")


def bad_updates(plan: Plan) -> dict[str, Tensors]:
    right = delta_of(0, 0, plan)
    first, *rest = right
    return {
        "is missing": {name: right[name] for name in rest},
        "is not one of": {**right, "extra": np.zeros(2, np.float32)},
        "should be": {**right, first: np.zeros((7, 7), np.float32)},
        "NaN or infinity": {**right, first: np.full_like(right[first], np.nan)},
    }


def test_bad_updates_are_rejected_with_a_reason_and_the_round_goes_on(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    good = ScriptedDevice(running, "good", lambda c: trained(c, delta_of(1, 1, plan)))
    bad = {
        f"bad-{i}": (sentence, ScriptedDevice(running, f"bad-{i}", lambda c, d=delta: trained(c, d)))  # type: ignore[misc]
        for i, (sentence, delta) in enumerate(bad_updates(plan).items())
    }
    running.wait_online(5)
    run = ended(running, start(running, plan, {}))
    assert run["state"] == "finished"
    by_device = {a["device"]: a for a in run["assignments"]}  # type: ignore[attr-defined]
    assert by_device["good"]["state"] == "folded"
    for name, (sentence, _) in bad.items():
        assert by_device[name]["state"] == "rejected"
        assert sentence in by_device[name]["reason"]
    final = tensors.load(running.server.blobs.get(running.server.runs.checkpoint(str(run["id"])).weights))
    delta = delta_of(1, 1, plan)
    for name, weight in plan.initial_weights().items():
        assert np.allclose(final[name], weight + delta[name])
    for device in (good, *(device for _, device in bad.values())):
        device.stop()


def test_metrics_and_counts_that_make_no_sense_are_rejected(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    right = delta_of(0, 0, plan)

    def wrong(command: Command, **change: object) -> Outcome:
        return msgspec.structs.replace(trained(command, right), **change)

    wrongs: dict[str, dict[str, object]] = {
        "none": {"examples": 0},
        "extra": {"metrics": {"loss": 1.0, "extra": 2.0}},
        "missing": {"metrics": {}},
    }
    devices = [
        ScriptedDevice(running, name, lambda c, change=change: wrong(c, **change))  # type: ignore[misc]
        for name, change in wrongs.items()
    ]
    running.wait_online(3)
    run = ended(running, start(running, plan, {}))
    assert run["state"] == "paused"
    assert "abandoned 3 times" in str(run["reason"])
    assert all(device.quarantined for device in running.server.devices.list(POPULATION))
    assert {a["state"] for a in run["assignments"]} == {"rejected"}  # type: ignore[attr-defined]
    for device in devices:
        device.stop()


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
def test_updates_of_an_abandoned_round_are_cancelled_not_folded(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    devices = [ScriptedDevice(running, f"device-{i}", lambda c: trained(c, delta_of(1, 1, plan))) for i in range(3)]
    running.wait_online(3)
    run = ended(running, start(running, plan, {"quorum": 3}, strategy="bulyan", options={"num_malicious_nodes": 2}))
    assert run["state"] == "paused"
    assert [a["state"] for a in run["attempts"]] == ["abandoned"] * 3  # type: ignore[attr-defined]
    assert {a["state"] for a in run["assignments"]} == {"cancelled"}  # type: ignore[attr-defined]
    for device in devices:
        device.stop()


def test_a_silent_device_expires_at_the_deadline_and_is_told_to_stop(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    good = ScriptedDevice(running, "good", lambda c: trained(c, delta_of(1, 1, plan)))
    silent = ScriptedDevice(running, "silent", lambda c: None)
    running.wait_online(2)
    run = ended(running, start(running, plan, {"deadline": 1.5}))
    assert run["state"] == "finished"
    states = {a["device"]: (a["state"], a["reason"]) for a in run["assignments"]}  # type: ignore[attr-defined]
    assert states["good"][0] == "folded"
    assert states["silent"] == ("expired", "not finished by the deadline")
    eventually(lambda: any(isinstance(c.body, Cancel) for c in silent.commands))
    good.stop()
    silent.stop()


def test_a_late_or_repeated_update_changes_nothing(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    good = ScriptedDevice(running, "good", lambda c: trained(c, delta_of(1, 1, plan)))
    late = ScriptedDevice(running, "late", lambda c: None)
    running.wait_online(2)
    run = ended(running, start(running, plan, {"deadline": 1.5}))
    before = running.server.runs.checkpoint(str(run["id"])).weights
    for device in (late, good):
        command = next(c for c in device.commands if isinstance(c.body, Train))
        device.result(command.id, trained(command, delta_of(9, 9, plan)))
    eventually(lambda: late.link.publish("elsewhere", b"flush"))
    again = ended(running, str(run["id"]))
    assert running.server.runs.checkpoint(str(run["id"])).weights == before
    assert {a["device"]: a["state"] for a in again["assignments"]} == {"good": "folded", "late": "expired"}  # type: ignore[attr-defined]
    good.stop()
    late.stop()


def test_what_a_device_refuses_shows_with_its_reason(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)

    def refuse(command: Command) -> Ack:
        return Ack(command.id, POPULATION, "picky", "declined", 0.0, "the battery is at 9%")

    picky = ScriptedDevice(running, "picky", refuse)
    running.wait_online(1)
    run = ended(running, start(running, plan, {}))
    assert run["state"] == "paused"
    assert "the battery is at 9%" in str(run["reason"])
    assert run["assignments"][0]["state"] == "declined"  # type: ignore[index]
    picky.stop()


def test_nobody_can_answer_for_another_device(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    victim = ScriptedDevice(running, "victim", lambda c: None)
    thief = ScriptedDevice(running, "thief", lambda c: None)
    running.wait_online(2)
    id = start(running, plan, {"deadline": 4.0})
    eventually(lambda: victim.commands and thief.commands)
    stolen = victim.commands[0]
    forged = trained(stolen, delta_of(6, 6, plan))
    victim.result(stolen.id, forged, key=thief.key)
    thief.result(stolen.id, forged)
    thief.result(thief.commands[0].id, trained(thief.commands[0], delta_of(1, 1, plan)))
    run = ended(running, id)
    states = {a["device"]: a["state"] for a in run["assignments"]}  # type: ignore[attr-defined]
    assert states == {"victim": "expired", "thief": "folded"}
    victim.stop()
    thief.stop()


def test_a_run_that_is_stopped_keeps_its_checkpoints_and_cancels_its_assignments(
    running: RunningServer, plan_of: PlanOf
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    device = ScriptedDevice(
        running,
        "slow",
        lambda c: trained(c, delta_of(1, 1, plan)) if isinstance(c.body, Train) and c.body.round == 1 else None,
    )
    running.wait_online(1)
    id = start(running, plan, {"deadline": 60.0}, rounds=5)
    eventually(lambda: any(isinstance(c.body, Train) and c.body.round == 2 for c in device.commands))
    assert running.server.runs.stop(id).state == "stopped"
    run = running.client.get(f"/v1/runs/{id}")
    assert [c["round"] for c in run["checkpoints"]] == [0, 1]
    assert run["assignments"][0]["state"] == "cancelled"
    device.stop()


def test_a_late_online_does_not_revive_a_dead_device(running: RunningServer) -> None:
    device = ScriptedDevice(running, "ghost", lambda c: None, epoch=7)
    running.wait_online(1)
    device.on_hello = lambda command: None  # it is dead: what comes from it now is late
    device.say(device.status(False), "status", retain=True)
    running.wait_online(0)
    device.say(device.status(True), "status")
    device.epoch = 6
    device.say(device.status(True), "status")
    device.epoch = 8
    device.say(msgspec.structs.replace(device.status(True), examples=5), "status")
    running.wait_online(1)
    assert running.server.devices.get(POPULATION, "ghost").examples == 5
    device.stop()


def test_an_update_that_comes_too_late_is_folded_into_the_next_checkpoint_at_a_discount(
    running: RunningServer, plan_of: PlanOf
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    quick = ScriptedDevice(running, "quick", lambda c: None)
    slow = ScriptedDevice(running, "slow", lambda c: None)
    running.wait_online(2)
    policy: dict[str, object] = {"target": 1, "over_selection": 2.0, "deadline": 30.0, "late": "fold"}
    id = start(running, plan, policy, rounds=2)

    def offered(device: ScriptedDevice, round: int) -> Command:
        def look() -> list[Command]:
            return [c for c in device.commands if isinstance(c.body, Train) and c.body.round == round]

        return eventually(look)[0]

    first, late = offered(quick, 1), offered(slow, 1)
    quick.result(first.id, trained(first, delta_of(1, 1, plan)))
    eventually(lambda: running.server.runs.get(id).round == 1)
    offered(quick, 2)
    slow.result(late.id, trained(late, delta_of(2, 1, plan), examples=30))
    assert ended(running, id)["state"] == "finished"
    by_id = {a["id"]: a for a in running.client.get(f"/v1/runs/{id}", round=1)["assignments"]}
    assert isinstance(late.body, Train)
    assert by_id[late.body.assignment]["folded_into"] == 2
    assert by_id[late.body.assignment]["weight"] == pytest.approx(30 / 2**0.5, abs=1 / 16)
    weights = [tensors.load(running.server.blobs.get(running.server.runs.checkpoint(id, n).weights)) for n in (1, 2)]
    for name, delta in delta_of(2, 1, plan).items():
        np.testing.assert_allclose(weights[1][name], weights[0][name] + delta, rtol=1e-6)
    quick.stop()
    slow.stop()


def test_buffered_asynchronous_rounds_make_a_checkpoint_of_every_few_updates(
    running: RunningServer, plan_of: PlanOf
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    devices = [ScriptedDevice(running, f"device-{i}", lambda c: trained(c, delta_of(1, 1, plan))) for i in range(4)]
    running.wait_online(4)
    policy: dict[str, object] = {"mode": "async", "buffer": 3, "concurrency": 2}
    id = start(running, plan, policy, rounds=5)
    run = ended(running, id)
    assert run["state"] == "finished"
    assert [c["contributors"] for c in run["checkpoints"]] == [0, 3, 3, 3, 3, 3]  # type: ignore[attr-defined]
    for device in devices:
        device.stop()


def test_a_paused_run_keeps_what_came_and_goes_on(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    good = ScriptedDevice(running, "good", lambda c: trained(c, delta_of(1, 1, plan)))
    slow = ScriptedDevice(running, "slow", lambda c: None)
    running.wait_online(2)
    id = start(running, plan, {"deadline": 60.0})

    def states() -> dict[str, str]:
        return {a["device"]: a["state"] for a in running.client.get(f"/v1/runs/{id}")["assignments"]}

    eventually(lambda: states() == {"good": "uploaded", "slow": "offered"})
    assert running.client.post(f"/v1/runs/{id}/pause")["state"] == "paused"
    assert states() == {"good": "uploaded", "slow": "cancelled"}
    eventually(lambda: any(isinstance(c.body, Cancel) for c in slow.commands))
    running.client.post(f"/v1/runs/{id}/resume")
    assert ended(running, id)["state"] == "finished"
    assert states() == {"good": "folded", "slow": "cancelled"}
    clone = running.client.post(f"/v1/runs/{id}/clone", {"settings": {"policy": {"deadline": 1.0}}, "from_run": id})
    assert ended(running, clone["id"])["state"] == "finished"
    first = running.server.runs.checkpoint(clone["id"], 0).weights
    assert first == running.server.runs.checkpoint(id, 1).weights
    good.stop()
    slow.stop()


def test_a_device_that_is_quarantined_gets_no_assignment_until_it_is_readmitted(
    running: RunningServer, plan_of: PlanOf
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    broken = {s.name: np.full(s.shape, np.nan, np.float32) for s in plan.manifest.weights}
    bad = ScriptedDevice(running, "bad", lambda c: trained(c, broken))
    good = ScriptedDevice(running, "good", lambda c: trained(c, delta_of(1, 1, plan)))
    running.wait_online(2)
    id = start(running, plan, {"max_rejections": 2}, rounds=4)
    assert ended(running, id)["state"] == "finished"
    asked = [len(running.client.get(f"/v1/runs/{id}", round=number)["assignments"]) for number in range(1, 5)]
    assert asked == [2, 2, 1, 1]
    assert "2 updates were rejected" in running.client.get("/v1/devices/test/bad")["quarantined"]
    assert running.client.post("/v1/devices/test/bad/readmit")["quarantined"] == ""
    bad.stop()
    good.stop()


def test_devices_evaluate_each_checkpoint_in_turn(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)

    def work(command: Command) -> Outcome | None:
        if isinstance(command.body, Evaluate):
            return Evaluated(command.body.assignment, 10, {"loss": float(command.body.round)})
        return trained(command, delta_of(1, 1, plan)) if isinstance(command.body, Train) else None

    devices = [ScriptedDevice(running, f"device-{i}", work) for i in range(3)]
    running.wait_online(3)
    id = start(running, plan, {"evaluate": 2}, rounds=3)
    assert ended(running, id)["state"] == "finished"

    def evaluated() -> list[tuple[dict[str, float], int]]:
        return [(c["evaluated"], c["evaluators"]) for c in running.client.get(f"/v1/runs/{id}")["checkpoints"][1:]]

    eventually(lambda: evaluated() == [({"loss": float(number)}, 2) for number in (1, 2, 3)])
    asked = [sum(isinstance(c.body, Evaluate) for c in device.commands) for device in devices]
    assert asked == [2, 2, 2]
    for device in devices:
        device.stop()


def test_an_answer_for_another_assignment_is_rejected_and_counted(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)

    def stale(command: Command) -> Outcome:
        return msgspec.structs.replace(trained(command, delta_of(1, 1, plan)), assignment="of-yesterday")

    device = ScriptedDevice(running, "stale", stale)
    running.wait_online(1)
    run = ended(running, start(running, plan, {"attempts": 1}))
    assert run["state"] == "paused"
    (assignment,) = run["assignments"]  # type: ignore[misc]
    assert assignment["state"] == "rejected"
    assert "it is for 'of-yesterday'" in assignment["reason"]
    assert running.server.devices.get(POPULATION, "stale").rejections == 1
    device.stop()


def test_a_run_requires_conditions_of_its_devices(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    device = ScriptedDevice(running, "phone", lambda c: trained(c, delta_of(1, 1, plan)))
    weary = ScriptedDevice(running, "weary", lambda c: None)
    weary.reasons = ["not charging"]
    running.wait_online(2)
    weary.say(weary.status(True), "status", retain=True)
    eventually(lambda: running.server.devices.get(POPULATION, "weary").reasons)
    id = start(running, plan, {"requires": {"min_battery": 0.4}})
    assert ended(running, id)["state"] == "finished"
    (command,) = device.commands
    assert isinstance(command.body, Train)
    assert command.body.requires.min_battery == 0.4
    assert weary.commands == []
    for each in (device, weary):
        each.stop()
