"""Devices that are suspended, resumed, revoked and deleted while they are connected and at work."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from joserfc.jwk import ECKey

from tests.brokers import EmbeddedProcess, Mosquitto
from tests.contract.server.runs.test_fleet_grid import start, trained
from tests.running_agent import RunningAgent
from tests.server_harness import POPULATION, RunningServer, ScriptedDevice, config_of
from tests.settled_commands import settled
from tests.signed_requests import signed
from tests.umbel_command import Umbel
from tests.waiting import eventually
from umbel import signing
from umbel.enrolment import CONNECTION_PATH, ENROL_PATH, EnrolmentRequest, sign_request, split_token
from umbel.errors import SignatureError, UmbelError
from umbel.messages import Ack, Blob, Command, Infer, Outcome, Standing, Train
from umbel.plan import Plan
from umbel.tensors import digest
from umbel_server.devices.register import Barred, UnknownDevice
from umbel_server.runs.fleet_port import FleetPort

PlanOf = Callable[[str], Plan]


@pytest.fixture
def running(tmp_path: Path, broker: EmbeddedProcess | Mosquitto) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path / "server", broker.port)
    yield server
    server.stop()


embedded = pytest.mark.parametrize("broker", ["embedded"], indirect=True)


def quick(plan: Plan) -> Callable[[Command], Outcome | None]:
    """A device that answers every training at once."""
    delta = {spec.name: np.zeros(spec.shape, np.float32) for spec in plan.manifest.weights}
    return lambda command: trained(command, delta) if isinstance(command.body, Train) else None


def decide(running: RunningServer, device: str, what: str, **body: object) -> dict[str, object]:
    return dict(running.client.post(f"/v1/devices/{POPULATION}/{device}/{what}", body))


def get(running: RunningServer, device: ScriptedDevice, path: str = CONNECTION_PATH) -> httpx.Response:
    headers = signed(device.key, POPULATION, device.name, "GET", path)
    return httpx.get(running.state.server_url + path, headers=headers, trust_env=False)


def notices(device: ScriptedDevice) -> list[str]:
    return [command.body.state for command in device.commands if isinstance(command.body, Standing)]


@pytest.mark.parametrize("what", ["suspend", "revoke"])
def test_a_round_goes_on_without_a_device_that_is_barred_at_work(
    running: RunningServer, plan_of: PlanOf, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    accepts = ScriptedDevice(running, "slow", lambda c: Ack(c.id, POPULATION, "slow", "accepted", 0.0))
    others = [ScriptedDevice(running, f"quick-{i}", quick(plan)) for i in range(2)]
    running.wait_online(3)
    id = start(running, plan, {"target": 3, "quorum": 2, "deadline": 60.0})
    eventually(
        lambda: {a["state"] for a in running.client.get(f"/v1/runs/{id}")["assignments"]} == {"accepted", "uploaded"}
    )
    began = time.monotonic()
    decide(running, "slow", what, reason="it was left in a bus")
    eventually(lambda: running.server.runs.get(id).state == "finished", 10)
    assert time.monotonic() - began < 10  # the deadline is far
    by_device = {a["device"]: a for a in running.client.get(f"/v1/runs/{id}", round=1)["assignments"]}
    assert by_device["slow"]["state"] == "cancelled"
    assert "it was left in a bus" in by_device["slow"]["reason"]
    assert [by_device[f"quick-{i}"]["state"] for i in range(2)] == ["folded"] * 2
    work = next(command for command in accepts.commands if isinstance(command.body, Train))
    assert running.client.get(f"/v1/commands/{work.id}")["state"] == "cancelled"
    # It is told, and nothing that it says or asks counts any more; it is online for nobody, and gets no work.
    state = "suspended" if what == "suspend" else "revoked"
    eventually(lambda: notices(accepts) == [state])
    for _ in range(5):
        accepts.say(accepts.status(True), "status", retain=True)
        accepts.result(work.id, quick(plan)(work))  # type: ignore[arg-type]
    eventually(lambda: "dropped a message" in caplog.text)
    assert caplog.text.count("dropped a message of test/slow") == 1
    answer = get(running, accepts)
    assert (answer.status_code, answer.json()["code"]) == (403, state)
    assert "it was left in a bus" in answer.json()["error"]
    row = running.client.get(f"/v1/devices/{POPULATION}/slow")
    assert (row["state"], row["online"], row["state_reason"]) == (state, False, "it was left in a bus")
    with pytest.raises(UmbelError, match=f"is {state}"):
        running.client.post("/v1/commands", {"population": POPULATION, "kind": "report", "devices": ["slow"]})
    sent = running.client.post("/v1/commands", {"population": POPULATION, "kind": "report"})
    assert {command["device"] for command in sent} == {"quick-0", "quick-1"}
    second = start(running, plan, {"target": 3, "quorum": 2})
    eventually(lambda: running.server.runs.get(second).state == "finished", 20)
    assert {a["device"] for a in running.client.get(f"/v1/runs/{second}", round=1)["assignments"]} == {
        "quick-0",
        "quick-1",
    }
    for device in (accepts, *others):
        device.stop()


@embedded
def test_a_suspended_device_comes_back_in_the_session_that_it_had(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    device = ScriptedDevice(running, "phone", quick(plan))
    running.wait_online(1)
    decide(running, "phone", "suspend")
    with pytest.raises(UmbelError, match="suspended already"):
        decide(running, "phone", "suspend")
    decide(running, "phone", "resume")
    eventually(lambda: notices(device) == ["suspended", "active"])
    device.say(device.status(True), "status", retain=True)
    running.wait_online(1)
    assert get(running, device).status_code == 200
    id = start(running, plan, {"quorum": 1})
    eventually(lambda: running.server.runs.get(id).state == "finished", 20)
    with pytest.raises(UmbelError, match="only a suspended one"):
        decide(running, "phone", "resume")
    device.stop()


@embedded
def test_a_revoked_key_never_comes_back_and_a_deleted_one_only_when_invited(running: RunningServer) -> None:
    device = ScriptedDevice(running, "phone", lambda c: None)
    running.wait_online(1)
    invitations, public = running.server.invitations, signing.public_key(device.key)

    def enrol(secret: str, name: str = "phone") -> None:
        invitations.enrol(EnrolmentRequest(name, "phone", public, secret, POPULATION))

    def invited() -> str:
        return invitations.invite(POPULATION, 1, 60.0, {})[0].secret

    with pytest.raises(UmbelError, match="revoke it first"):
        decide(running, "phone", "delete")
    decide(running, "phone", "revoke")
    with pytest.raises(UmbelError, match="never takes part again"):
        decide(running, "phone", "resume")
    for secret in (running.state.enrolment_secret, invited()):
        for name in ("phone", "other"):
            with pytest.raises(Barred, match="is revoked"):
                enrol(secret, name)
    assert decide(running, "phone", "delete")["state"] == "deleted"
    with pytest.raises(UmbelError, match="not enrolled"):
        running.client.get(f"/v1/devices/{POPULATION}/phone")
    assert (get(running, device).status_code, get(running, device).json()["code"]) == (401, "unknown")
    for secret in (running.state.enrolment_secret, invited()):
        for name in ("phone", "other"):
            with pytest.raises(Barred, match="is revoked"):
                enrol(secret, name)
    device.stop()
    public = signing.public_key(signing.generate_key())
    enrol(invited(), "shelf")
    decide(running, "shelf", "delete")  # it was never online, and not revoked
    for name in ("shelf", "other"):
        with pytest.raises(Barred, match="new invitation"):
            enrol(running.state.enrolment_secret, name)
    enrol(invited(), "other")
    assert running.server.devices.get(POPULATION, "other").state == "active"


@embedded
def test_one_key_is_one_device(running: RunningServer) -> None:
    key = signing.generate_key()

    def enrol(name: str, population: str, by: ECKey = key) -> httpx.Response:
        (made,) = running.client.post("/v1/invitations", {"population": population})
        asked = EnrolmentRequest(name, "phone", signing.public_key(key), split_token(made["token"])[0])
        url = running.state.server_url + ENROL_PATH
        return httpx.post(url, content=sign_request(asked, by), trust_env=False)

    refused = enrol("phone", POPULATION, signing.generate_key())  # another's key
    assert (refused.status_code, "does not verify" in refused.json()["error"]) == (403, True)
    assert enrol("phone", POPULATION).status_code == 200
    for name, population in (("other", POPULATION), ("phone", "another"), ("other", "another")):
        refused = enrol(name, population)
        assert (refused.status_code, "enrolled with this key" in refused.json()["error"]) == (403, True)
    assert enrol("phone", POPULATION).status_code == 200
    decide(running, "phone", "delete")
    assert enrol("other", "another").status_code == 200


@embedded
def test_an_agent_that_does_not_sign_its_enrolment_is_told_to_be_upgraded(running: RunningServer) -> None:
    asked = EnrolmentRequest("phone", "phone", signing.public_key(signing.generate_key()), "secret")
    answer = httpx.post(running.state.server_url + ENROL_PATH, content=msgspec.json.encode(asked), trust_env=False)
    assert (answer.status_code, "upgrade the agent" in answer.json()["error"]) == (400, True)


@embedded
def test_a_device_that_was_never_online_can_be_deleted_and_its_token_with_it(running: RunningServer) -> None:
    (made,) = running.client.post("/v1/invitations", {"population": POPULATION})
    public = signing.public_key(signing.generate_key())
    request = EnrolmentRequest("shelf", "phone", public, split_token(made["token"])[0])
    running.server.invitations.enrol(request)
    running.client.post("/v1/commands", {"population": POPULATION, "kind": "report"})
    decide(running, "shelf", "delete")
    assert running.client.get("/v1/devices") == []
    with pytest.raises(Barred, match="is deleted"):
        running.server.invitations.enrol(request)
    another = EnrolmentRequest("shelf", "gateway", signing.public_key(signing.generate_key()), "", POPULATION)
    running.server.invitations.enrol(msgspec.structs.replace(another, secret=running.state.enrolment_secret))
    assert running.server.devices.get(POPULATION, "shelf").kind == "gateway"
    with pytest.raises(SignatureError, match="used by another"):
        running.server.invitations.enrol(request)
    with pytest.raises(UnknownDevice):
        running.server.lifecycle.delete(POPULATION, "nobody")


@embedded
def test_names_and_labels_are_the_administrators(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    devices = [ScriptedDevice(running, f"phone-{i}", quick(plan)) for i in range(2)]
    running.wait_online(2)
    assert decide(running, "phone-1", "rename", name="Anna's phone")["name"] == "Anna's phone"
    with pytest.raises(UmbelError, match="on one line"):
        decide(running, "phone-1", "rename", name="two\nlines")
    decide(running, "phone-1", "label", labels={"site": "lab", "tier": "a"})
    assert decide(running, "phone-1", "label", labels={}, remove=["tier"])["labels"] == {"site": "lab"}
    with pytest.raises(UmbelError, match="no label 'tier'"):
        decide(running, "phone-1", "label", remove=["tier"])
    status = msgspec.structs.replace(devices[1].status(True), labels={"site": "home", "own": "yes"})
    devices[1].say(status, "status", retain=True)
    shown = f"/v1/devices/{POPULATION}/phone-1"
    eventually(lambda: running.client.get(shown)["labels"] == {"site": "lab", "own": "yes"})
    id = start(running, plan, {"quorum": 1, "labels": {"site": "lab"}})
    eventually(lambda: running.server.runs.get(id).state == "finished", 20)
    assert [a["device"] for a in running.client.get(f"/v1/runs/{id}", round=1)["assignments"]] == ["phone-1"]
    for device in devices:
        device.stop()


@embedded
def test_an_upload_in_progress_ends_with_the_device(running: RunningServer) -> None:
    device = ScriptedDevice(running, "phone", lambda c: None)
    data = np.random.default_rng(0).bytes(400_000)
    path = f"/v1/blobs/{digest(data)}"
    with running.server.database.transaction() as session:
        asked = running.server.outbox.add(session, POPULATION, "phone", Infer(Blob.of(b"")), 60.0)

    def pieces() -> Iterator[bytes]:
        yield data[:100_000]
        eventually(lambda: any((running.state.folder / "uploads").rglob("*.part")))
        decide(running, "phone", "suspend", reason="stop")
        yield data[100_000:]

    headers = signed(device.key, POPULATION, "phone", "PUT", path, asked.id) | {"Content-Length": str(len(data))}
    answer = httpx.put(running.state.server_url + path, content=pieces(), headers=headers, trust_env=False)
    assert (answer.status_code, answer.json()["code"]) == (403, "suspended")
    eventually(lambda: not any((running.state.folder / "uploads").rglob("*.part")))
    assert not running.server.received_blobs.of(asked.id).has(digest(data))
    device.stop()


@embedded
def test_a_download_in_progress_ends_with_the_device(running: RunningServer) -> None:
    device = ScriptedDevice(running, "phone", lambda c: None)
    path = f"/v1/blobs/{running.client.put_blob(np.random.default_rng(0).bytes(60_000_000), POPULATION)}"
    headers = signed(device.key, POPULATION, "phone", "GET", path)
    url, got = running.state.server_url + path, 0

    def download() -> None:
        nonlocal got
        with httpx.stream("GET", url, headers=headers, trust_env=False) as answer:
            for chunk in answer.iter_raw(1 << 16):
                if got == 0:
                    decide(running, "phone", "revoke")
                got += len(chunk)

    with pytest.raises(httpx.RemoteProtocolError):
        download()
    assert 0 < got < 60_000_000
    device.stop()


@embedded
def test_an_update_that_waits_to_be_folded_is_rejected_when_its_device_is_revoked(
    running: RunningServer, plan_of: PlanOf
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    devices = [ScriptedDevice(running, "bad", quick(plan)), ScriptedDevice(running, "silent", lambda c: None)]
    running.wait_online(2)
    id = start(running, plan, {"quorum": 2, "deadline": 60.0})
    eventually(lambda: "uploaded" in {a["state"] for a in running.client.get(f"/v1/runs/{id}")["assignments"]})
    running.client.post(f"/v1/runs/{id}/pause")
    decide(running, "bad", "revoke")
    running.client.post(f"/v1/runs/{id}/resume")

    def of_bad() -> dict[str, object]:
        return next(a for a in running.client.get(f"/v1/runs/{id}", round=1)["assignments"] if a["device"] == "bad")

    eventually(lambda: of_bad()["state"] == "rejected")
    assert of_bad()["reason"] == "bad was revoked before its update was folded"
    assert running.server.devices.get(POPULATION, "bad").rejections == 0
    running.client.post(f"/v1/runs/{id}/stop")
    for device in devices:
        device.stop()


@embedded
def test_a_device_barred_between_its_choice_and_its_offer_is_offered_nothing(
    running: RunningServer, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    device = ScriptedDevice(running, "phone", quick(plan))
    running.wait_online(1)
    offer = FleetPort.offer

    def after_a_suspension(port: FleetPort, *arguments: object) -> None:
        if running.server.devices.get(POPULATION, "phone").state == "active":
            running.server.lifecycle.suspend(POPULATION, "phone")
        offer(port, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(FleetPort, "offer", after_a_suspension)
    id = start(running, plan, {"quorum": 1, "deadline": 30.0, "attempts": 1})
    eventually(lambda: running.server.runs.get(id).state == "paused", 20)
    (assignment,) = running.client.get(f"/v1/runs/{id}", round=1)["assignments"]
    assert (assignment["state"], assignment["reason"]) == ("cancelled", "the device was suspended")
    assert not any(isinstance(command.body, Train) for command in device.commands)
    device.stop()


def test_an_agent_waits_while_it_is_suspended_and_works_when_it_is_resumed(
    running: RunningServer, tmp_path: Path, plan_of: PlanOf, caplog: pytest.LogCaptureFixture
) -> None:
    agent = RunningAgent(config_of(running, tmp_path / "phone"))
    running.wait_online(1)
    plan = running.server.plans.add(plan_of("line").path)
    id = start(running, plan, {"quorum": 1, "deadline": 120.0}, epochs=1_000_000)
    eventually(lambda: "accepted" in {a["state"] for a in running.client.get(f"/v1/runs/{id}")["assignments"]})
    decide(running, "phone", "suspend", reason="for now")
    eventually(lambda: agent.agent.participation.reason)
    running.client.post(f"/v1/runs/{id}/stop")
    assert running.client.get(f"/v1/runs/{id}", round=1)["assignments"][0]["state"] == "cancelled"
    decide(running, "phone", "resume")
    running.wait_online(1)
    (report,) = running.client.post("/v1/commands", {"population": POPULATION, "kind": "report"})
    (done,) = settled(running.client, [report], 20)
    assert done["state"] == "done"
    agent.stop()
    decide(running, "phone", "suspend", reason="again")
    caplog.clear()
    agent = RunningAgent(msgspec.structs.replace(config_of(running, tmp_path / "phone"), enrolment_token=""))
    eventually(lambda: "; waiting" in caplog.text)
    decide(running, "phone", "resume")  # it asks now and then, and has no link over which it could be told
    running.wait_online(1)
    agent.stop()


@embedded
def test_fifty_messages_at_the_moment_of_a_revocation_change_nothing_after_it(running: RunningServer) -> None:
    device = ScriptedDevice(running, "phone", lambda c: None)
    running.wait_online(1)
    stop, said = threading.Event(), list[int]()

    def talk() -> None:
        while not stop.is_set():
            device.say(device.status(True), "status", retain=True)
            said.append(1)
            stop.wait(0.002)

    talking = threading.Thread(target=talk)
    talking.start()
    for _ in range(10):
        decide(running, "phone", "suspend")
        assert not running.server.devices.get(POPULATION, "phone").online
        before = len(said)
        eventually(lambda before=before: len(said) >= before + 20)
        assert not running.server.devices.get(POPULATION, "phone").online
        decide(running, "phone", "resume")
        running.wait_online(1)
    stop.set()
    talking.join()
    device.stop()


@embedded
def test_an_operator_decides_on_the_command_line(running: RunningServer) -> None:
    device = ScriptedDevice(running, "phone", lambda c: None)
    running.wait_online(1)
    umbel = partial(Umbel(running.state.folder, columns=160), "devices")
    of = ("phone", "-p", POPULATION)
    assert "its id stays phone" in umbel("rename", "phone", "Anna", "-p", POPULATION)
    assert "site=lab" in umbel("label", "phone", "site=lab", "-p", POPULATION)
    umbel("label", *of, code=2)
    assert "is suspended" in umbel("suspend", *of, "--reason", "lost")
    for words in (("list",), ("show", *of)):
        shown = umbel(*words)
        assert all(word in shown for word in ("Anna", "suspended", "lost"))
    assert '"state": "active"' in umbel("resume", *of, "--json")
    assert "revoke it first" in umbel("delete", *of, code=1)
    assert "for good" in umbel("revoke", *of)
    assert "new invitation" in umbel("delete", *of)
    assert "No device" in umbel("list")
    device.stop()
