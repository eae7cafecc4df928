"""Quotas of a population, and limits of a device, on a real server: what is refused, with what, and what goes on."""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from tests.contract.server.fleet.test_lifecycle import quick
from tests.running_agent import RunningAgent
from tests.server_harness import POPULATION, RunningServer, ScriptedDevice, config_of
from tests.settled_commands import settled
from tests.signed_requests import signed
from tests.umbel_command import Umbel
from tests.waiting import eventually
from umbel import signing, topics
from umbel.enrolment import EnrolmentRequest, sign_request, split_token
from umbel.errors import UmbelError
from umbel.messages import Ack, Answered, Blob, Command, Infer
from umbel.mqtt import Link
from umbel.plan import Plan
from umbel.tensors import digest
from umbel_server.client import Client
from umbel_server.commands import delivery
from umbel_server.limits.rates import BURST_SECONDS, STRANGERS, Limits, MessageLimits
from umbel_server.runs.settings import RunSettings

PlanOf = Callable[[str], Plan]
DATA = np.random.default_rng(0).bytes(300_000)


def allow(running: RunningServer, **limits: int | None) -> dict[str, Any]:
    return dict(running.client.post(f"/v1/quotas/{POPULATION}", limits))


def used(running: RunningServer) -> dict[str, Any]:
    return dict(running.client.get(f"/v1/quotas/{POPULATION}"))


def ask(running: RunningServer, device: ScriptedDevice, method: str, path: str, **more: Any) -> httpx.Response:
    headers = signed(device.key, POPULATION, device.name, method, path, more.pop("command", ""))
    return httpx.request(method, running.state.server_url + path, headers=headers, trust_env=False, **more)


def infer(running: RunningServer, device: ScriptedDevice) -> str:
    """A command that is answered with an upload of any size."""
    with running.server.database.transaction() as session:
        return running.server.outbox.add(session, POPULATION, device.name, Infer(Blob.of(b"")), 600.0).id


def test_a_device_too_many_is_refused_and_its_token_stays_good(running: RunningServer) -> None:
    tokens = [one["token"] for one in running.client.post("/v1/invitations", {"population": POPULATION, "count": 2})]
    keys = [signing.generate_key() for _ in tokens]

    def enrol(number: int) -> httpx.Response:
        asked = EnrolmentRequest(
            f"d{number}", "phone", signing.public_key(keys[number]), split_token(tokens[number])[0]
        )
        url = f"{running.state.server_url}/v1/enrol"
        return httpx.post(url, content=sign_request(asked, keys[number]), trust_env=False)

    allow(running, devices=1)
    assert enrol(0).status_code == 200
    refused = enrol(1)
    assert (refused.status_code, "has 1 devices, its quota is 1" in refused.json()["error"]) == (403, True)
    assert enrol(0).status_code == 200  # the device that is enrolled may ask again
    entry = running.client.get("/v1/audit", limit=1)[0]
    assert (entry["action"], "its quota is 1" in entry["outcome"]) == ("device.enrol", True)
    allow(running, devices=2)
    assert enrol(1).status_code == 200
    assert used(running)["devices"] == 2


def test_what_would_not_fit_is_refused_before_its_first_byte_until_the_quota_is_raised(running: RunningServer) -> None:
    device = ScriptedDevice(running, "phone", lambda c: None)
    command, path = infer(running, device), f"/v1/blobs/{digest(DATA)}"
    running.client.put_blob(b"x" * 1000, POPULATION)
    allow(running, storage=300_999)
    head = signed(device.key, POPULATION, device.name, "PUT", path, command) | {"Content-Length": str(len(DATA))}
    lines = [f"PUT {path} HTTP/1.1", "Host: server", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    with closing(socket.create_connection(("127.0.0.1", running.state.config.http.port), timeout=20)) as link:
        link.sendall("\r\n".join(lines).encode())
        assert link.recv(1000).startswith(b"HTTP/1.1 413")
    answer = ask(running, device, "PUT", path, command=command, content=DATA)
    assert (answer.status_code, "its quota is 300,999 bytes" in answer.json()["error"]) == (413, True)
    with pytest.raises(UmbelError, match="its quota is 300,999 bytes"):
        running.client.put_blob(DATA, POPULATION)
    running.client.put_blob(DATA, "another")
    assert running.client.get(f"/v1/devices/{POPULATION}/phone")["refused"]["requests"] >= 1
    assert used(running)["refused"]["storage (quota)"] >= 2
    allow(running, storage=301_000)
    assert ask(running, device, "PUT", path, command=command, content=DATA).status_code == 200
    device.stop()


def test_what_came_and_is_not_answered_yet_is_stored_too(running: RunningServer) -> None:
    device = ScriptedDevice(running, "phone", lambda c: None)
    running.wait_online(1)
    command, path = infer(running, device), f"/v1/blobs/{digest(DATA)}"
    allow(running, storage=500_000)
    assert ask(running, device, "PUT", path, command=command, content=DATA).status_code == 200
    assert used(running)["storage"] == 300_000
    other, size = infer(running, device), 150_000
    assert ask(running, device, "PUT", path, command=other, content=DATA).status_code == 413
    more = DATA[:size]
    assert ask(running, device, "PUT", f"/v1/blobs/{digest(more)}", command=other, content=more).status_code == 200
    assert used(running)["storage"] == 450_000
    running.restart()
    assert used(running)["storage"] == 450_000
    outputs = Blob(digest(DATA), len(DATA))
    device.result(command, Answered("release", outputs))
    eventually(lambda: running.client.get(f"/v1/commands/{command}")["state"] == "done")
    eventually(lambda: used(running)["storage"] == 450_000)  # once, among what belongs to the population
    device.ack(other, "failed", "no")
    eventually(lambda: used(running)["storage"] == 300_000)
    device.stop()


def test_an_upload_that_broke_off_is_stored_until_it_goes_on(running: RunningServer) -> None:
    device = ScriptedDevice(running, "phone", lambda c: None)
    command, path = infer(running, device), f"/v1/blobs/{digest(DATA)}"
    allow(running, storage=310_000)
    head = signed(device.key, POPULATION, device.name, "PUT", path, command) | {"Content-Length": str(len(DATA))}
    lines = [f"PUT {path} HTTP/1.1", "Host: server", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    with closing(socket.create_connection(("127.0.0.1", running.state.config.http.port), timeout=20)) as link:
        link.sendall("\r\n".join(lines).encode() + DATA[:100_000])
        parts = running.state.folder / "uploads"
        eventually(lambda: sum(part.stat().st_size for part in parts.rglob("*.part")) == 100_000)
    eventually(lambda: used(running)["storage"] == 100_000)
    path = f"/v1/uploads/{digest(DATA)}"
    headers = signed(device.key, POPULATION, device.name, "PATCH", path, command, offset=100_000)
    headers["Upload-Offset"] = "100000"
    rest = DATA[100_000:]
    assert (
        httpx.patch(running.state.server_url + path, content=rest, headers=headers, trust_env=False).status_code == 204
    )
    assert used(running)["storage"] == 300_000
    device.stop()


def test_a_plan_that_does_not_fit_is_refused_before_its_first_byte(running: RunningServer, plan_of: PlanOf) -> None:
    token = running.client.post("/v1/admins", {"name": "otto", "role": "owner", "populations": [POPULATION]})["token"]
    allow(running, storage=10)
    head = (
        f"POST /v1/plans HTTP/1.1\r\nHost: server\r\nAuthorization: Bearer {token}\r\nContent-Length: 3000000\r\n\r\n"
    )
    with closing(socket.create_connection(("127.0.0.1", running.state.config.http.port), timeout=20)) as link:
        link.sendall(head.encode())
        assert link.recv(1000).startswith(b"HTTP/1.1 413")
    allow(running, storage=None)
    plan = plan_of("line").path
    Client(running.state.server_url, token).add_plan(plan)
    assert used(running)["bytes_up_today"] == plan.stat().st_size


def test_a_days_bytes_are_counted_as_they_move_and_no_more_are_sent(running: RunningServer) -> None:
    device = ScriptedDevice(running, "phone", lambda c: None)
    path = f"/v1/blobs/{running.client.put_blob(DATA, POPULATION)}"
    allow(running, bytes_per_day=2 * len(DATA) + 100)
    assert ask(running, device, "GET", path).content == DATA
    command = infer(running, device)
    up = DATA[:-1] + b"y"
    assert ask(running, device, "PUT", f"/v1/blobs/{digest(up)}", command=command, content=up).status_code == 200
    shown = used(running)
    assert (shown["bytes_down_today"], shown["bytes_up_today"]) == (len(DATA), len(DATA))
    refused = ask(running, device, "GET", path)
    assert (refused.status_code, "may move 600,100 bytes a day" in refused.json()["error"]) == (429, True)
    assert 0 < int(refused.headers["retry-after"]) <= 86_400
    assert ask(running, device, "HEAD", path).status_code == 200
    headers = signed(device.key, POPULATION, "phone", "GET", path) | {"Range": "bytes=0-99"}
    part = httpx.get(running.state.server_url + path, headers=headers, trust_env=False)
    assert (part.status_code, len(part.content)) == (206, 100)
    path_up, offset = f"/v1/uploads/{digest(b'no')}", 10**17  # what would begin beyond the end promises no bytes back
    headers = signed(device.key, POPULATION, "phone", "PATCH", path_up, command, offset=offset)
    beyond = httpx.patch(
        running.state.server_url + path_up,
        content=iter([b"x"]),
        headers=headers | {"Upload-Offset": str(offset)},
        trust_env=False,
    )
    assert beyond.status_code == 413
    again = infer(running, device)
    assert ask(running, device, "PUT", f"/v1/blobs/{digest(DATA)}", command=again, content=DATA).status_code == 429
    assert running.client.get_blob(digest(DATA)) == DATA  # an owner of all is not held up
    allow(running, bytes_per_day=None)
    assert ask(running, device, "GET", path).content == DATA
    device.stop()


def test_a_run_that_cannot_store_its_checkpoint_pauses_with_the_reason_and_goes_on(
    running: RunningServer, plan_of: PlanOf
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    device = ScriptedDevice(running, "phone", quick(plan))
    running.wait_online(1)
    allow(running, storage=10)
    settings = msgspec.convert({"rounds": 2, "policy": {"deadline": 60.0}}, RunSettings)
    run = running.server.runs.start(POPULATION, plan.sha256, settings).id
    paused = eventually(lambda: (row := running.server.runs.get(run)).state == "paused" and row)
    assert "its quota is 10 bytes" in paused.reason
    assert "resume the run" in paused.reason
    assert running.client.get(f"/v1/runs/{run}")["assignments"] == []  # no device worked for nothing
    allow(running, storage=10**9)
    running.server.runs.resume(run)
    assert eventually(lambda: (row := running.server.runs.get(run)).state == "finished" and row).round == 2
    device.stop()


def test_an_agent_waits_for_more_of_the_days_bytes_and_goes_on(
    running: RunningServer, plan_of: PlanOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its plan may not be fetched: the round ends by its deadline, with the reason; when the quota is raised a round commits."""
    plan = running.server.plans.add(plan_of("line").path)
    allow(running, bytes_per_day=10)
    agent = RunningAgent(config_of(running, tmp_path / "phone"))
    running.wait_online(1)
    settings = msgspec.convert({"rounds": 1, "policy": {"deadline": 3.0}}, RunSettings)
    run = running.server.runs.start(POPULATION, plan.sha256, settings).id
    eventually(lambda: any(a["state"] == "abandoned" for a in running.client.get(f"/v1/runs/{run}")["attempts"]))
    assert "may move 10 bytes a day" in caplog.text
    allow(running, bytes_per_day=10**9)
    if running.server.runs.get(run).state == "paused":
        running.server.runs.resume(run)
    assert eventually(lambda: (row := running.server.runs.get(run)).state == "finished" and row, 90).round == 1
    agent.stop()


def test_an_owner_sets_and_shows_quotas(running: RunningServer) -> None:
    umbel = partial(Umbel(running.state.folder, columns=160), "quota")
    set_ = ("set", "-p", POPULATION, "--devices", "20", "--storage", "10GB", "--bytes-per-day", "50GB", "--json")
    row = json.loads(umbel(*set_))
    assert (row["devices_limit"], row["storage_limit"], row["bytes_per_day_limit"]) == (20, 10**10, 5 * 10**10)
    entry = running.client.get("/v1/audit", limit=1)[0]
    assert (entry["action"], entry["population"], entry["detail"]["storage"]) == ("quota.set", POPULATION, 10**10)
    running.client.put_blob(b"x" * 2_000_000, POPULATION)
    shown = umbel("show")
    assert "0 of 20" in shown
    assert "2.0 MB of 10.0 GB" in shown
    assert json.loads(umbel("show", "-p", POPULATION, "--json"))[0]["storage"] == 2_000_000
    assert "no limit" not in umbel("set", "-p", POPULATION, "--storage", "none")
    assert used(running)["storage_limit"] is None
    assert "a size such as" in umbel("set", "-p", POPULATION, "--storage", "much", code=2)
    assert "name what to limit" in umbel("set", "-p", POPULATION, code=2)


def test_a_device_with_too_many_transfers_loses_the_oldest(running: RunningServer) -> None:
    device = ScriptedDevice(running, "phone", lambda c: None)
    data = np.random.default_rng(1).bytes(60_000_000)
    path = f"/v1/blobs/{running.client.put_blob(data, POPULATION)}"
    most = running.state.config.limits.transfers
    links = [socket.create_connection(("127.0.0.1", running.state.config.http.port), timeout=20) for _ in range(most)]
    for link in links:  # none of them reads more than its answer's beginning
        head = signed(device.key, POPULATION, "phone", "GET", path)["Authorization"]
        link.sendall(f"GET {path} HTTP/1.1\r\nHost: server\r\nAuthorization: {head}\r\n\r\n".encode())
        assert link.recv(100).startswith(b"HTTP/1.1 200")
    assert ask(running, device, "GET", path).content == data

    def rest(link: socket.socket) -> int:
        count = 0
        while count < len(data) and (piece := link.recv(1 << 20)):
            count += len(piece)
        return count

    assert rest(links[0]) < len(data) - 1_000_000
    assert rest(links[1]) >= len(data) - 1_000_000
    assert running.server.refusals.of(f"{POPULATION}/phone") == {"transfers": 1}
    for link in links:
        link.close()
    device.stop()


def test_names_that_there_are_not_keep_no_device_from_the_server_after_its_start(running: RunningServer) -> None:
    device = ScriptedDevice(running, "phone", lambda command: None)
    running.wait_online(1)
    running.restart()
    limits = running.server.exchange.intake.limits
    while limits.admit("test/nobody", False):
        limits.forged(STRANGERS, "it is not enrolled")
    device.say(device.status(True), "status", retain=True)
    running.wait_online(1)
    invited = ScriptedDevice(running, "new", lambda command: None)
    running.wait_online(2)
    for one in (device, invited):
        one.stop()


def test_who_floods_keeps_no_other_from_the_server(running: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sends without pause what it signed, and a stranger sends on another's topics what that one did not."""
    monkeypatch.setattr(delivery, "RESEND_SECONDS", 1.0)
    limits = Limits(messages_per_second=2, forgeries_per_second=2)
    running.server.exchange.intake.limits = MessageLimits(limits, running.server.refusals)

    def report(command: Command) -> Ack:
        return Ack(command.id, POPULATION, command.device, "done", 0.0)

    loud, victim, worker = (ScriptedDevice(running, name, report) for name in ("loud", "victim", "worker"))
    running.wait_online(3)
    stranger = Link("127.0.0.1", running.state.config.mqtt.port, "stranger", (), lambda topic, token: None)
    stranger.start()
    assert stranger.wait_up(10)
    forged, over = victim.encode(victim.status(True), loud.key), threading.Event()

    def flood() -> None:
        while not over.wait(0.001):
            loud.say(loud.status(True), "status")
            stranger.publish(topics.topic(POPULATION, "victim", "status"), forged)

    def dropped(name: str) -> int:
        return running.server.refusals.of(f"{POPULATION}/{name}").get("messages", 0)

    def done(name: str) -> bool:
        asked = running.client.post("/v1/commands", {"population": POPULATION, "kind": "report", "devices": [name]})
        return bool(settled(running.client, asked, 30)[0]["state"] == "done")

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        eventually(lambda: dropped("loud") > 200 and dropped("victim") > 200)
        assert done("worker")
        assert dropped("worker") == 0
    finally:
        over.set()
        flooding.join(10)
    assert running.server.refusals.of(f"{POPULATION}/victim")["forged messages"] >= 2 * BURST_SECONDS
    assert running.client.get(f"/v1/devices/{POPULATION}/loud")["refused"]["messages"] > 200
    assert done("victim")  # it has lost nothing of what it may send itself
    stranger.stop()
    for device in (loud, victim, worker):
        device.stop()
