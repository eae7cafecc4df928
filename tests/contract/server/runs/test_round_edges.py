"""Runs at their edges: orders at odd moments, and what hostile devices send."""

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest
import urllib3

from tests.security.parsers import NASTY_TENSORS
from tests.server_harness import POPULATION, RunningServer, ScriptedDevice
from tests.waiting import eventually
from umbel import signing, tensors, topics
from umbel.errors import UmbelError
from umbel.messages import Ack, Blob, Command, Evaluate, Evaluated, Outcome, Train, Trained
from umbel.metrics import MetricSpec
from umbel.plan import Plan
from umbel_server.aggregation import Buffers
from umbel_server.aggregation.device_metrics import average
from umbel_server.aggregation.vetting import Vetting
from umbel_server.runs.settings import RunSettings
from umbel_server.storage.blobs import Blobs
from umbel_server.storage.database import Run

PlanOf = Callable[[str], Plan]


def update_of(plan: Plan) -> Blob:
    return Blob.of(tensors.dump({s.name: np.full(s.shape, 0.1, np.float32) for s in plan.manifest.weights}))


def trained(command: Command, update: Blob, loss: float = 0.5) -> Trained:
    assert isinstance(command.body, Train)
    return Trained(command.body.assignment, update, 10, {"loss": loss})


def start(running: RunningServer, plan: Plan, policy: dict[str, object], **settings: object) -> str:
    wanted = msgspec.convert(
        {"rounds": 1, "policy": {"deadline": 5.0, "backoff": 0.1, "attempts": 2, **policy}, **settings}, RunSettings
    )
    return running.server.runs.start(POPULATION, plan.sha256, wanted).id


def ended(running: RunningServer, id: str) -> dict[str, object]:
    eventually(lambda: running.server.runs.get(id).state != "running", 30)
    return running.client.get(f"/v1/runs/{id}")


def test_an_order_that_comes_before_a_run_is_under_way_is_followed(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    id = start(running, plan, {"deadline": 60.0})
    assert running.server.runs.pause(id).state == "paused"
    running.server.runs.resume(id)
    assert running.server.runs.stop(id).state == "stopped"


def test_a_round_that_was_open_when_its_run_was_stopped_is_closed(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    device = ScriptedDevice(running, "device", lambda c: None)
    running.wait_online(1)
    id = start(running, plan, {"deadline": 60.0})
    eventually(lambda: running.client.get(f"/v1/runs/{id}")["attempts"])
    running.server.runs.pause(id)
    assert running.client.get(f"/v1/runs/{id}")["attempts"][0]["state"] == "open"
    running.server.runs.stop(id)
    (attempt,) = running.client.get(f"/v1/runs/{id}")["attempts"]
    assert (attempt["state"], attempt["reason"]) == ("abandoned", "the run was stopped")
    device.stop()


def test_a_round_below_its_quorum_keeps_what_came_over_a_pause_and_asks_other_devices(
    running: RunningServer, plan_of: PlanOf
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    update = update_of(plan)
    good = ScriptedDevice(running, "good", lambda c: trained(c, update) if isinstance(c.body, Train) else None)
    slow = ScriptedDevice(running, "slow", lambda c: None)
    running.wait_online(2)
    id = start(running, plan, {"quorum": 2, "deadline": 60.0})

    def states() -> list[tuple[str, int, str]]:
        return [(a["device"], a["attempt"], a["state"]) for a in running.client.get(f"/v1/runs/{id}")["assignments"]]

    eventually(lambda: states() == [("good", 0, "uploaded"), ("slow", 0, "offered")])
    (before,) = running.client.get(f"/v1/runs/{id}")["attempts"]
    running.server.runs.pause(id)
    running.server.runs.resume(id)
    train = eventually(lambda: [c for c in slow.commands if isinstance(c.body, Train)][1:])[0]
    (attempt,) = running.client.get(f"/v1/runs/{id}")["attempts"]
    assert (attempt["state"], attempt["wanted"]) == ("open", 2)
    assert attempt["closes"] > before["closes"]
    slow.result(train.id, trained(train, update))
    assert ended(running, id)["state"] == "finished"
    assert sorted(states()) == [("good", 0, "folded"), ("slow", 0, "cancelled"), ("slow", 0, "folded")]
    assert len([c for c in good.commands if isinstance(c.body, Train)]) == 1
    good.stop()
    slow.stop()


def test_an_order_that_comes_while_a_run_is_resumed_is_followed(
    running: RunningServer, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    runs = running.server.runs
    id = start(running, plan, {"deadline": 60.0})
    runs.pause(id)
    noted, go_on = threading.Event(), threading.Event()
    launch = runs.launch

    def slowly(run: str) -> None:
        noted.set()
        assert go_on.wait(10)
        launch(run)

    monkeypatch.setattr(runs, "launch", slowly)
    resuming, pausing = (
        threading.Thread(target=runs.resume, args=(id,)),
        threading.Thread(target=runs.pause, args=(id,)),
    )
    resuming.start()
    assert noted.wait(10)
    assert runs.get(id).state == "running"
    pausing.start()
    pausing.join(0.3)
    go_on.set()
    resuming.join(10)
    pausing.join(10)
    assert runs.get(id).state == "paused"


def test_a_run_that_pauses_by_itself_while_it_is_stopped_is_stopped(
    running: RunningServer, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    runs = running.server.runs
    id = start(running, plan, {"deadline": 0.3, "attempts": 1})
    order = runs.order

    def late(run: Run, what: Literal["pause", "stop"]) -> Run:
        eventually(lambda: runs.get(id).state == "paused" and id not in runs.driven)
        return order(run, what)

    monkeypatch.setattr(runs, "order", late)
    assert runs.stop(id).state == "stopped"


def test_of_several_who_resume_a_run_at_once_one_does(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    for _ in range(5):
        id = start(running, plan, {"deadline": 60.0})
        running.server.runs.pause(id)
        refusals: list[str] = []
        barrier = threading.Barrier(4)

        def resume(id: str = id, refusals: list[str] = refusals, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                running.server.runs.resume(id)
            except UmbelError as error:
                refusals.append(str(error))

        threads = [threading.Thread(target=resume) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refusals) == 3
        running.server.runs.stop(id)


def test_a_run_that_fails_leaves_no_assignment_open(
    running: RunningServer, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    update = update_of(plan)
    good = ScriptedDevice(running, "good", lambda c: trained(c, update) if isinstance(c.body, Train) else None)
    silent = ScriptedDevice(running, "silent", lambda c: None)
    running.wait_online(2)

    def fails(*_: object) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(Vetting, "accept", fails)
    run = ended(running, start(running, plan, {"deadline": 60.0}))
    assert run["state"] == "failed"
    assert {a["state"] for a in run["assignments"]} == {"cancelled"}  # type: ignore[attr-defined]
    good.stop()
    silent.stop()


@pytest.mark.parametrize("strategy", ["fedavg", "qfedavg"])
def test_no_loss_of_a_device_makes_a_run_fail(running: RunningServer, plan_of: PlanOf, strategy: str) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    update = update_of(plan)
    losses = {"huge": 1e308, "large": 1e90, "usual": 0.5, "fine": 0.4, "good": 0.3}
    devices = [
        ScriptedDevice(running, name, lambda c, loss=loss: trained(c, update, loss))  # type: ignore[misc]
        for name, loss in losses.items()
    ]
    running.wait_online(5)
    options = {"q": 2.0} if strategy == "qfedavg" else {}
    id = start(running, plan, {}, strategy=strategy, options=options)
    run = ended(running, id)
    assert run["state"] == "finished", run["reason"]
    folded = {a["device"] for a in run["assignments"] if a["state"] == "folded"}  # type: ignore[attr-defined]
    assert {"usual", "fine", "good"} <= folded
    for checkpoint in running.client.get(f"/v1/runs/{id}")["checkpoints"]:
        assert all(isinstance(value, float) for value in checkpoint["fleet_metrics"].values())
    for device in devices:
        device.stop()


def test_an_evaluation_out_of_range_is_left_out(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    update = update_of(plan)

    def work(command: Command) -> Outcome | None:
        if isinstance(command.body, Evaluate):
            return Evaluated(command.body.assignment, 100, {"loss": 1e308})
        return trained(command, update) if isinstance(command.body, Train) else None

    device = ScriptedDevice(running, "device", work)
    running.wait_online(1)
    id = start(running, plan, {"evaluate": 1})
    ended(running, id)
    eventually(
        lambda: any(
            a["kind"] == "evaluate" and a["state"] == "folded"
            for a in running.client.get(f"/v1/runs/{id}", round=1)["assignments"]
        )
    )
    assert running.client.get(f"/v1/runs/{id}")["checkpoints"][1]["evaluated"] == {}
    device.stop()


def test_a_metric_that_is_no_number_is_left_out() -> None:
    specs = [MetricSpec("rmse", "root_mean", {"total": (), "count": ()})]
    report: dict[str, float | list[float]] = {"loss": 1.0, "rmse.total": -1.0, "rmse.count": 1.0}
    with np.errstate(invalid="ignore"):
        assert average([("device", report, 1.0)], specs) == ({"loss": 1.0}, 1)


def test_an_update_that_is_far_too_large_is_refused_unread(
    running: RunningServer, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    large = running.give(running.server.blobs.put(bytes(4_000_000)))
    read: list[str] = []
    fill = running.server.blobs.fill

    def noting(sha256: str, memory: memoryview) -> Iterator[int]:
        read.append(sha256)
        return fill(sha256, memory)

    monkeypatch.setattr(running.server.blobs, "fill", noting)
    device = ScriptedDevice(running, "device", lambda c: trained(c, large) if isinstance(c.body, Train) else None)
    running.wait_online(1)
    run = ended(running, start(running, plan, {}))
    assert {a["state"] for a in run["assignments"]} == {"rejected"}  # type: ignore[attr-defined]
    assert "at most" in run["assignments"][0]["reason"]  # type: ignore[index]
    assert large.sha256 not in read
    device.stop()


@pytest.mark.parametrize("number", range(4))
def test_an_update_with_a_header_that_no_library_writes_is_refused_and_the_round_goes_on(
    running: RunningServer, plan_of: PlanOf, number: int
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    nasty = running.server.blobs.put(NASTY_TENSORS[number])
    updates = {"hostile": nasty, "good": update_of(plan)}
    devices = [ScriptedDevice(running, name, lambda c, u=update: trained(c, u)) for name, update in updates.items()]
    running.wait_online(2)
    run = ended(running, start(running, plan, {"deadline": 20.0}))
    assert run["state"] == "finished", run["reason"]
    assert {a["device"]: a["state"] for a in run["assignments"]} == {"hostile": "rejected", "good": "folded"}  # type: ignore[attr-defined]
    for device in devices:
        device.stop()


def test_a_run_that_has_ended_holds_no_memory_for_updates(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    update = update_of(plan)
    device = ScriptedDevice(running, "device", lambda c: trained(c, update))
    running.wait_online(1)
    assert ended(running, start(running, plan, {}))["state"] == "finished"
    # Without a collection: a server at rest has none for long, and a run's port lies in a circle.
    buffers = [found for found in gc.get_objects() if isinstance(found, Buffers)]
    assert sum(own.free_bytes for own in buffers) == 0
    eventually(lambda: running.server.runs.driven == ())
    device.stop()


def test_more_examples_than_anybody_has_are_refused_at_once(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    update = update_of(plan)
    device = ScriptedDevice(running, "device", lambda c: msgspec.structs.replace(trained(c, update), examples=10**30))
    running.wait_online(1)
    run = ended(running, start(running, plan, {"deadline": 60.0}))
    assert {a["state"] for a in run["assignments"]} == {"rejected"}  # type: ignore[attr-defined]
    device.stop()


def test_requests_that_make_no_sense_are_answered(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    token = {"Authorization": f"Bearer {running.state.admin_token}"}
    http, url = urllib3.PoolManager(), running.state.server_url
    far = "9" * 5000
    asked = http.request("PATCH", f"{url}/v1/uploads/{'0' * 64}", headers={**token, "Upload-Offset": far})
    assert asked.status == 400
    asked = http.request("GET", f"{url}/v1/blobs/{plan.sha256}", headers={**token, "Range": f"bytes={far}-"})
    assert asked.status == 200
    id = start(running, plan, {})
    body = msgspec.json.encode({"settings": {"policy": 5}})
    assert http.request("POST", f"{url}/v1/runs/{id}/clone", body=body, headers=token).status == 400
    running.server.runs.stop(id)


def test_a_blob_that_a_power_failure_emptied_is_stored_again(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path.as_uri())
    blob = blobs.put(b"x" * 100, durable=True)
    (path,) = tmp_path.glob(f"*/{blob.sha256}")
    path.write_bytes(b"")
    blobs.put(b"x" * 100)
    assert blobs.get(blob.sha256) == b"x" * 100


def test_done_without_an_update_ends_an_assignment(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    device = ScriptedDevice(running, "device", lambda c: Ack(c.id, POPULATION, "device", "done", 0.0))
    running.wait_online(1)
    run = ended(running, start(running, plan, {"deadline": 60.0}))
    assert {a["state"] for a in run["assignments"]} == {"failed"}  # type: ignore[attr-defined]
    device.stop()


def test_a_device_is_not_quarantined_for_what_it_refuses_itself(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    device = ScriptedDevice(running, "device", lambda c: Ack(c.id, POPULATION, "device", "rejected", 0.0, "forged"))
    running.wait_online(1)
    ended(running, start(running, plan, {"max_rejections": 1}))
    assert running.server.devices.get(POPULATION, "device").quarantined == ""
    device.stop()


def test_a_device_that_says_too_much_gets_its_outcome_through(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    sorry = Ack("", POPULATION, "sorry", "failed", 0.0, "x" * 50_000)

    def fails(command: Command) -> None:
        topic = topics.topic(POPULATION, "sorry", "ack")
        ack = msgspec.structs.replace(sorry, command=command.id, topic=topic, expires=command.expires)
        sorry_device.link.publish(topic, signing.sign_as("ack", msgspec.json.encode(ack), sorry_device.key))

    def measures(command: Command) -> Outcome:
        return msgspec.structs.replace(trained(command, update_of(plan)), metrics={"x" * 50_000: 0.5})

    sorry_device, measuring = ScriptedDevice(running, "sorry", fails), ScriptedDevice(running, "measuring", measures)
    running.wait_online(2)
    run = ended(running, start(running, plan, {"deadline": 60.0, "attempts": 1}))
    assert {a["device"]: a["state"] for a in run["assignments"]} == {"sorry": "failed", "measuring": "rejected"}  # type: ignore[attr-defined]
    assert all(len(a["reason"]) <= 1000 for a in run["assignments"])  # type: ignore[attr-defined]
    assert max(len(a["metrics"]) for a in run["assignments"]) == 0  # type: ignore[attr-defined]
    sorry_device.stop()
    measuring.stop()
