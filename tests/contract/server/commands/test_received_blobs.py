"""What devices send is bounded by the commands they were given, and is gone when nobody needs it any more."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from tests.brokers import EmbeddedProcess
from tests.server_harness import POPULATION, RunningServer, ScriptedDevice
from tests.signed_requests import signed
from tests.waiting import eventually
from umbel import tensors
from umbel.messages import Ack, Blob, Body, Command, Export, Exported, Infer, Outcome, Report, Train, Trained
from umbel.plan import Plan
from umbel_server.aggregation import largest_update
from umbel_server.commands import received_blobs
from umbel_server.commands.received_blobs import FOLDER, ReceivedBlobs
from umbel_server.runs.settings import RunSettings
from umbel_server.server import Server
from umbel_server.storage.blobs import Blobs

PlanOf = Callable[[str], Plan]


@pytest.fixture
def broker() -> Iterator[EmbeddedProcess]:
    broker = EmbeddedProcess()
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def running(tmp_path: Path, broker: EmbeddedProcess) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path / "server", broker.port)
    yield server
    server.stop()


def give(running: RunningServer, device: str, body: Body) -> str:
    """Note a command once its device can be heard: what it says before is lost."""
    eventually(lambda: running.server.devices.get(POPULATION, device).online)
    with running.server.database.transaction() as session:
        return running.server.outbox.add(session, POPULATION, device, body, 60.0).id


def upload(
    running: RunningServer, device: ScriptedDevice, command: str, data: bytes, method: str = "PUT"
) -> tuple[int, str]:
    path = f"/v1/blobs/{Blob.of(data).sha256}" if method == "PUT" else f"/v1/uploads/{Blob.of(data).sha256}"
    headers = signed(device.key, POPULATION, device.name, method, path, command) | {"Upload-Offset": "0"}
    answer = httpx.request(method, running.state.server_url + path, content=data, headers=headers, trust_env=False)
    return answer.status_code, answer.text


def left(running: RunningServer) -> list[str]:
    """Everything that came from devices and is still on the disk."""
    folder = running.state.folder
    # os.walk does not mind what is removed meanwhile.
    found = [*os.walk(folder / "blobs" / FOLDER), *os.walk(folder / "uploads")]
    return [str((Path(parent) / name).relative_to(folder)) for parent, _, names in found for name in names]


def own_blobs(running: RunningServer) -> set[str]:
    return {path.name for path in (running.state.folder / "blobs").glob("??/*")}


def update_of(plan: Plan, value: float = 0.1) -> bytes:
    return tensors.dump({s.name: np.full(s.shape, value, np.float32) for s in plan.manifest.weights})


def train(running: RunningServer, plan: Plan, **wanted: object) -> str:
    policy = {"deadline": 10.0, "backoff": 0.1, "attempts": 1, **wanted.pop("policy", {})}  # type: ignore[dict-item]
    settings = msgspec.convert({"rounds": 1, "policy": policy, **wanted}, RunSettings)
    return running.server.runs.start(POPULATION, plan.sha256, settings).id


def ended(running: RunningServer, id: str) -> dict[str, object]:
    eventually(lambda: running.server.runs.get(id).state != "running", 30)
    return running.client.get(f"/v1/runs/{id}")


def test_a_device_uploads_only_for_an_open_command_of_its_own(running: RunningServer) -> None:
    device, other = (ScriptedDevice(running, name, lambda c: None) for name in ("device", "other"))
    theirs, closed = give(running, "other", Infer(Blob.of(b""))), give(running, "device", Infer(Blob.of(b"")))
    report = give(running, "device", Report())
    device.ack(closed, "failed", "no model")
    eventually(lambda: running.server.outbox.get(closed).state == "failed")
    data = os.urandom(20_000)
    for command, sentence in (
        ("", "upgrade this device's agent"),
        ("0" * 16, "was given to this device"),
        ("../../x", "was given to this device"),
        (theirs, "was given to this device"),
        (closed, "is over (failed)"),
        (report, "without an upload"),
    ):
        for method in ("PUT", "PATCH"):
            status, text = upload(running, device, command, data, method)
            assert (status, sentence in text) == (403, True), text
        assert upload(running, device, command, data, "HEAD")[0] == 403
    assert left(running) == []
    assert upload(running, other, theirs, data)[0] == 200
    other.stop()
    device.stop()


def test_what_a_device_stores_is_bounded_by_its_open_commands(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    device = ScriptedDevice(running, "device", lambda c: None)
    blob, weights = running.server.plans.blob(plan), Blob.of(update_of(plan))
    training = give(running, "device", Train("a", "r", 1, blob, weights, time.time() + 60, 0.1))
    most = largest_update(plan.manifest.weights)
    status, text = upload(running, device, training, os.urandom(most + 1))
    assert (status, f"at most {most} bytes" in text) == (413, True)
    exporting = give(running, "device", Export(blob))
    assert upload(running, device, exporting, os.urandom(plan.manifest.files["infer.tflite"].size + 1))[0] == 413
    sent = [upload(running, device, training, os.urandom(20_000))[0] for _ in range(5)]
    assert sent == [200, 200, 422, 422, 422]
    assert len(left(running)) == 2
    device.ack(training, "failed", "enough")
    eventually(lambda: left(running) == [])
    device.stop()


def test_results_that_nothing_waits_for_store_nothing(running: RunningServer) -> None:
    device = ScriptedDevice(running, "device", lambda c: None)
    report = give(running, "device", Report())
    before = own_blobs(running)
    for number in range(9):
        device.result(f"made-up-{number}", Exported(Blob.of(os.urandom(1000)), 1))
    device.result(report, Exported(Blob.of(os.urandom(1000)), 1))
    eventually(lambda: running.server.outbox.get(report).state == "rejected")
    assert running.server.outbox.get(report).reason == "the answer should be Reported, it is Exported"
    assert own_blobs(running) == before
    assert left(running) == []
    device.stop()


@pytest.mark.parametrize("strategy", ["fedavg", "fedmedian"])
def test_updates_go_with_their_round_and_everything_else_stays(
    running: RunningServer, plan_of: PlanOf, strategy: str
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    admins = running.client.put_blob(update_of(plan, 0.3))

    def work(value: float) -> Callable[[Command], Outcome | Ack | None]:
        def answer(command: Command) -> Outcome | None:
            if not isinstance(command.body, Train):
                return None
            return Trained(command.body.assignment, Blob.of(update_of(plan, value)), 10, {"loss": 0.5})

        return answer

    # One sends the same bytes as an administrator did, one what is refused, one nothing until the run is over.
    values = {"same": 0.3, "fine": 0.2, "wrong": float("nan")}
    devices = [ScriptedDevice(running, name, work(value)) for name, value in values.items()]
    devices.append(ScriptedDevice(running, "silent", lambda c: None))
    running.wait_online(4)
    run = ended(
        running, train(running, plan, strategy=strategy, rounds=2, policy={"deadline": 2.0, "max_rejections": 0})
    )
    assert run["state"] == "finished", run["reason"]
    states = {a["device"]: a["state"] for a in run["assignments"]}  # type: ignore[attr-defined]
    assert (states["same"], states["fine"], states["wrong"]) == ("folded", "folded", "rejected")
    eventually(lambda: left(running) == [])
    assert running.client.get_blob(admins) == update_of(plan, 0.3)
    for checkpoint in run["checkpoints"]:  # type: ignore[attr-defined]
        assert tensors.load(running.client.get_blob(checkpoint["weights"]))
    for device in devices:
        device.stop()


def test_updates_of_a_run_that_is_paused_stay_until_it_ends(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)

    def work(command: Command) -> Outcome | None:
        assert isinstance(command.body, Train)
        return Trained(command.body.assignment, Blob.of(update_of(plan)), 10, {"loss": 0.5})

    good, silent = ScriptedDevice(running, "good", work), ScriptedDevice(running, "silent", lambda c: None)
    running.wait_online(2)
    id = train(running, plan, policy={"deadline": 60.0})
    eventually(lambda: {a["state"] for a in running.client.get(f"/v1/runs/{id}")["assignments"]} >= {"uploaded"})
    running.server.runs.pause(id)
    assert len(left(running)) == 1
    running.server.received_blobs.sweep()
    assert len(left(running)) == 1
    running.server.runs.stop(id)
    eventually(lambda: left(running) == [])
    good.stop()
    silent.stop()


def test_an_upload_whose_command_ends_meanwhile_leaves_nothing(running: RunningServer) -> None:
    device = ScriptedDevice(running, "device", lambda c: None)
    command = give(running, "device", Infer(Blob.of(b"")))
    data, go_on = os.urandom(400_000), threading.Event()

    def slow() -> Iterator[bytes]:
        yield data[:200_000]
        go_on.wait(20)
        yield data[200_000:]

    path = f"/v1/blobs/{Blob.of(data).sha256}"
    headers = signed(device.key, POPULATION, "device", "PUT", path, command)
    answers: list[int] = []

    def put() -> None:
        url = running.state.server_url + path
        answers.append(httpx.put(url, content=slow(), headers=headers, trust_env=False).status_code)

    thread = threading.Thread(target=put)
    thread.start()
    eventually(lambda: left(running))
    device.ack(command, "failed", "no room")
    eventually(lambda: left(running) == [])
    go_on.set()
    thread.join(10)
    assert answers == [422]
    assert left(running) == []
    device.stop()


@pytest.mark.parametrize("keep", [False, True])
def test_a_server_that_starts_removes_what_a_crash_left(
    tmp_path: Path, broker: EmbeddedProcess, plan_of: PlanOf, keep: bool
) -> None:
    running = RunningServer(tmp_path / "server", broker.port, keep_updates=keep)
    plan = running.server.plans.add(plan_of("line").path)

    def work(command: Command) -> Outcome | None:
        assert isinstance(command.body, Train)
        return Trained(command.body.assignment, Blob.of(update_of(plan)), 10, {"loss": 0.5})

    device = ScriptedDevice(running, "device", work)
    running.wait_online(1)
    run = ended(running, train(running, plan))
    (folded,) = run["assignments"]  # type: ignore[misc]
    command = running.server.outbox.latest(POPULATION, "device")[0].id
    assert folded["state"] == "folded"
    failed, open_one = (give(running, "device", Infer(Blob.of(b""))) for _ in range(2))
    device.ack(failed, "failed", "no model")
    eventually(lambda: running.server.outbox.get(failed).state == "failed")
    device.stop()
    running.stop()
    received, parts = running.state.folder / "blobs" / FOLDER, running.state.folder / "uploads" / "commands"
    store = Blobs(running.state.blobs_url)
    kept = [str(path) for path in received.rglob("*") if path.is_file()]
    assert len(kept) == keep
    for one in (command, failed, open_one, "unknown"):
        store.apart(f"{FOLDER}/{one}").put(update_of(plan))
        (parts / one).mkdir(parents=True)
        (parts / one / "x.part").write_bytes(b"x")
    again = Server(running.state)
    again.start()
    again.stop()
    wanted = {open_one, command} if keep else {open_one}
    assert {path.name for path in received.iterdir()} == wanted
    assert {path.name for path in parts.iterdir()} == wanted


def test_what_cannot_be_removed_holds_nothing_else_up_and_is_tried_again(
    running: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(received_blobs, "RETRY_SECONDS", 0.1)
    folder, elsewhere = running.state.folder / "blobs" / FOLDER, tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number in range(40):
        running.server.received_blobs.of(f"fine-{number}").put(b"x")
        (folder / f"stuck-{number}").symlink_to(elsewhere)  # which is not followed to remove things there
    running.server.received_blobs.remove_soon(path.name for path in list(folder.iterdir()))
    eventually(lambda: not list(folder.glob("fine-*")))
    assert len(list(folder.glob("stuck-*"))) == 40
    for path in folder.glob("stuck-*"):
        path.unlink()
        path.mkdir()
    eventually(lambda: left(running) == [])


def test_a_bucket_that_does_not_answer_does_not_hold_the_server_up_when_it_stops(
    running: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(received_blobs, "STOP_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as bucket:
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bucket.getsockname()[1]}"),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_SKIP_SIGNATURE", "true"),
            ("AWS_REGION", "here"),
        ):
            monkeypatch.setenv(name, value)
        parts = tmp_path / "parts"
        blobs_in_bucket = ReceivedBlobs(
            running.server.database, Blobs("s3://bucket"), running.server.ownership, parts, False
        )
        starting = threading.Thread(target=blobs_in_bucket.start, daemon=True)
        starting.start()
        listing, _ = bucket.accept()  # what a process before this one left behind: nothing
        listing.recv(1 << 16)
        nothing = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
        listing.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(nothing) + nothing)
        listing.close()
        starting.join(20)
        blobs_in_bucket.remove_soon(["over"])
        asked, _ = bucket.accept()
        stopping = threading.Thread(target=blobs_in_bucket.stop, daemon=True)
        stopping.start()
        stopping.join(20)
        assert not stopping.is_alive()
        asked.close()


def test_what_is_apart_is_found_apart_and_removed_alone_in_a_folder_and_in_a_bucket(tmp_path: Path) -> None:
    for url in (tmp_path.as_uri(), "memory:///"):
        blobs = Blobs(url)
        own, a, b = blobs.put(b"x" * 100), blobs.apart("received/a"), blobs.apart("received/b")
        for data in (b"x" * 100, b"y" * 100):
            a.put(data)
        y = b.put(b"y" * 100, durable=True)
        assert (a.count(), b.count(), sorted(blobs.names("received"))) == (2, 1, ["a", "b"])
        assert not blobs.has(y.sha256)
        blobs.copy_from(b, y.sha256)
        a.remove_all()
        a.remove_all()
        assert (a.count(), b.get(y.sha256), blobs.names("received")) == (0, b"y" * 100, ["b"])
        b.remove_all()
        assert (blobs.get(own.sha256), blobs.get(y.sha256)) == (b"x" * 100, b"y" * 100)
