"""How often the server visits the store of received blobs for one uploaded update: counted on the wire to a bucket."""

from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.counting_bucket import CountingBucket
from tests.server_harness import POPULATION, RunningServer, ScriptedDevice, serving
from tests.signed_requests import signed
from tests.waiting import eventually
from umbel import tensors
from umbel.messages import Blob, Command, Outcome, Train, Trained
from umbel.plan import Plan
from umbel_server.commands.received_blobs import FOLDER
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.runs.settings import RunSettings


def test_an_uploaded_update_is_four_visits_until_it_is_folded(
    tmp_path: Path, plan_of: Callable[[str], Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """List for the bound on a command's blobs, store, look up what the answer names, read to fold; then list and remove."""
    with CountingBucket().serving() as bucket:
        for name, value in {
            "AWS_ENDPOINT_URL": bucket.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_SKIP_SIGNATURE": "true",
            "AWS_REGION": "here",
        }.items():
            monkeypatch.setenv(name, value)
        with serving(tmp_path / "server", blobs="s3://bucket") as running:
            plan = running.server.plans.add(plan_of("line").path)
            update = tensors.dump({s.name: np.full(s.shape, 0.1, np.float32) for s in plan.manifest.weights})
            blob = Blob.of(update)
            counted: list[int] = []

            def work(command: Command) -> Outcome | None:
                assert isinstance(command.body, Train)
                upload(running, device, command.id, update)
                counted.append(running.server.received_blobs.unanswered_bytes(POPULATION))
                return Trained(command.body.assignment, Blob(blob.sha256, blob.size), 10, {"loss": 0.5})

            device = ScriptedDevice(running, "device", work)
            running.wait_online(1)
            run = running.server.runs.start(POPULATION, plan.sha256, RunSettings(rounds=1))
            eventually(lambda: running.server.runs.get(run.id).state != "running", 30)
            assert running.server.runs.get(run.id).state == "finished"
            assert counted == [len(update)]
            eventually(lambda: not any(key.startswith(FOLDER) for key in bucket.objects))
            device.stop()
        folder = f"{FOLDER}/{device.commands[0].id}/"
        stored = f"{folder}{blob.sha256[:2]}/{blob.sha256}"
        visits = [(method, key) for method, key in bucket.requests if f"{key.rstrip('/')}/".startswith(folder)]
        assert [method for method, _ in visits] == ["LIST", "PUT", "HEAD", "GET", "LIST", "DELETE"]
        assert {key for method, key in visits if method != "LIST"} == {stored}


def test_an_update_that_its_population_owns_already_is_folded_without_an_upload(
    running: RunningServer, plan_of: Callable[[str], Plan]
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    update = tensors.dump({s.name: np.full(s.shape, 0.1, np.float32) for s in plan.manifest.weights})
    owned, unknown = running.give(running.server.blobs.put(update)), Blob("0" * 64, len(update))

    def answering(blob: Blob) -> Callable[[Command], Outcome | None]:
        def work(command: Command) -> Outcome | None:
            assert isinstance(command.body, Train)
            return Trained(command.body.assignment, Blob(blob.sha256, blob.size), 10, {"loss": 0.5})

        return work

    devices = [ScriptedDevice(running, *of) for of in (("owns", answering(owned)), ("lies", answering(unknown)))]
    running.wait_online(2)
    policy = RoundPolicy(deadline=5.0, attempts=1, max_rejections=1)
    run = running.server.runs.start(POPULATION, plan.sha256, RunSettings(rounds=1, policy=policy))
    eventually(lambda: running.server.runs.get(run.id).state != "running", 30)
    states = {a["device"]: a["state"] for a in running.client.get(f"/v1/runs/{run.id}")["assignments"]}
    assert states == {"owns": "folded", "lies": "rejected"}
    for device in devices:
        device.stop()


def upload(running: RunningServer, device: ScriptedDevice, command: str, data: bytes) -> None:
    path = f"/v1/blobs/{Blob.of(data).sha256}"
    headers = signed(device.key, POPULATION, device.name, "PUT", path, command)
    answer = httpx.put(running.state.server_url + path, content=data, headers=headers, trust_env=False)
    assert answer.status_code == 200, answer.text
