"""The HTTP API over a real socket: who may ask, blobs, and requests that make no sense."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from tests.server_harness import POPULATION, RunningServer, ScriptedDevice, serving
from tests.signed_requests import signed as signed_as
from umbel import signing
from umbel.enrolment import EnrolmentRequest, sign_request
from umbel.errors import UmbelError
from umbel.messages import Blob, Infer
from umbel.plan import Plan
from umbel.tensors import digest


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("api") / "server") as server:
        yield server


@pytest.fixture(scope="module")
def device(running: RunningServer) -> Iterator[ScriptedDevice]:
    scripted = ScriptedDevice(running, "phone", lambda c: None)
    yield scripted
    scripted.stop()


def ask(running: RunningServer, method: str, path: str, **options: object) -> httpx.Response:
    return httpx.request(method, running.state.server_url + path, trust_env=False, **options)  # type: ignore[arg-type]


def signed(
    device: ScriptedDevice, method: str, path: str, at: float | None = None, command: str = ""
) -> dict[str, str]:
    return signed_as(device.key, POPULATION, device.name, method, path, command, at)


def test_a_device_fetches_a_blob_whole_and_in_part(running: RunningServer, device: ScriptedDevice) -> None:
    data = np.random.default_rng(0).bytes(300_000)
    path = f"/v1/blobs/{running.client.put_blob(data, POPULATION)}"
    headers = signed(device, "GET", path)
    whole = ask(running, "GET", path, headers=headers)
    assert (whole.content, whole.headers["content-type"]) == (data, "application/octet-stream")
    part = ask(running, "GET", path, headers=headers | {"Range": "bytes=299000-"})
    assert (part.status_code, part.content) == (206, data[299000:])
    assert part.headers["content-range"] == "bytes 299000-299999/300000"
    middle = ask(running, "GET", path, headers=headers | {"Range": "bytes=10-19"})
    assert middle.content == data[10:20]
    assert ask(running, "GET", path, headers=headers | {"Range": "bytes=300000-"}).status_code == 416


def test_an_upload_with_another_digest_is_refused_and_not_kept(running: RunningServer, device: ScriptedDevice) -> None:
    path = f"/v1/blobs/{digest(b'right')}"
    with running.server.database.transaction() as session:
        asked = running.server.outbox.add(session, POPULATION, device.name, Infer(Blob.of(b"")), 60.0)
    answer = ask(running, "PUT", path, content=b"wrong", headers=signed(device, "PUT", path, command=asked.id))
    assert answer.status_code == 422
    assert "should have digest" in answer.json()["error"]
    missing = ask(running, "GET", path, headers=signed(device, "GET", path))
    assert (missing.status_code, "not on this server" in missing.json()["error"]) == (404, True)


@pytest.mark.parametrize("address", ["..%2F..%2Fumbel.toml", "0" * 63, "g" * 64, "0" * 65, "A" * 64])
def test_an_address_that_is_no_digest_is_refused(running: RunningServer, address: str) -> None:
    admin = {"Authorization": f"Bearer {running.state.admin_token}"}
    assert ask(running, "GET", f"/v1/blobs/{address}", headers=admin).status_code in (404, 422)


def test_requests_without_a_fresh_token_of_their_own_are_refused(
    running: RunningServer, device: ScriptedDevice
) -> None:
    path, other = f"/v1/blobs/{digest(b'a')}", f"/v1/blobs/{digest(b'b')}"
    stranger = signed_as(signing.generate_key(), POPULATION, device.name, "GET", path)
    for headers in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer nonsense"},
        stranger,
        signed(device, "GET", other),
        signed(device, "PUT", path),
        signed(device, "GET", path, at=time.time() - 3600),
    ):
        assert ask(running, "GET", path, headers=headers).status_code == 401
    for admin_path in ("/v1/devices", "/v1/runs", "/v1/releases"):
        assert ask(running, "GET", admin_path, headers=signed(device, "GET", admin_path)).status_code == 401


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/commands", b"not json"),
        ("/v1/commands", b'{"population": "test", "kind": "dance"}'),
        ("/v1/commands", b'{"population": "empty", "kind": "report"}'),
        ("/v1/commands", b'{"population": "test", "kind": "report", "devices": ["nobody"]}'),
        ("/v1/commands", b'{"population": "test", "kind": "report", "ttl": -1}'),
        ("/v1/commands", b'{"population": "test", "kind": "report", "ttl": 1e300}'),
        ("/v1/commands", b'{"population": "test", "kind": "install", "release": "none"}'),
        ("/v1/runs", b'{"population": "test", "plan": "' + b"0" * 64 + b'"}'),
        ("/v1/runs", b'{"population": "test", "plan": "../etc"}'),
        ("/v1/runs/nothing/stop", b""),
        ("/v1/runs/nothing/releases", b"{}"),
        ("/v1/plans", b"not a plan"),
        ("/v1/enrol", b"{}"),
        ("/v1/enrol", b"x" * 100_000),
    ],
)
def test_requests_that_make_no_sense_get_one_sentence(running: RunningServer, path: str, body: bytes) -> None:
    answer = ask(running, "POST", path, content=body, headers={"Authorization": f"Bearer {running.state.admin_token}"})
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_a_list_of_no_population_is_none_of_all(running: RunningServer) -> None:
    with pytest.raises(UmbelError, match="a population"):
        running.client.get("/v1/devices", population="")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"strategy": "fedmagic"}, "no strategy 'fedmagic'"),
        ({"strategy": "fedavg", "options": {"magic": 1.0}}, "no option 'magic'"),
        ({"rounds": 0}, "rounds should be at least 1"),
        ({"rounds": 10**15}, "rounds should be at most 1,000,000,000, got 1,000,000,000,000,000"),
        ({"policy": {"deadline": 1e308}}, "deadline should be at most 31,536,000, got 1e.308"),
        ({"policy": {"fraction": 1.5}}, "fraction should be"),
        ({"policy": {"deadline": 0}}, "deadline should be"),
        ({"policy": {"minimum": 3}}, "unknown field `minimum`"),
        ({"budget_hours": -1}, "budget_hours should be"),
        ({"until": "accuracy", "at_least": 0.9}, "needs held-out examples"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    running: RunningServer, plan_of: Callable[[str], Plan], settings: dict[str, object], sentence: str
) -> None:
    plan = running.client.add_plan(plan_of("line").path).plan
    before = len(running.client.get("/v1/runs"))
    with pytest.raises(UmbelError, match=sentence):
        running.client.post("/v1/runs", {"population": POPULATION, "plan": plan, "settings": settings})
    assert len(running.client.get("/v1/runs")) == before


FAR = 10**30


@pytest.mark.parametrize(
    "path", [f"/v1/runs/latest?round={FAR}", f"/v1/runs/latest/live?after={FAR}", "/v1/runs/x?round=y"]
)
def test_a_parameter_that_is_no_round_is_refused(running: RunningServer, path: str) -> None:
    answer = ask(running, "GET", path, headers={"Authorization": f"Bearer {running.state.admin_token}"})
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"].startswith(("round: ", "after: "))


@pytest.mark.parametrize(
    "wanted",
    [
        {"from_run": "latest", "from_round": FAR},
        *({"settings": {name: 10**400}} for name in ("rounds", "epochs", "max_steps", "seed", "budget_bytes")),
        *({"settings": {"policy": {name: FAR}}} for name in ("target", "quorum", "attempts", "concurrency", "buffer")),
    ],
)
def test_whole_numbers_that_no_database_holds_are_refused(
    running: RunningServer, plan_of: Callable[[str], Plan], wanted: dict[str, object]
) -> None:
    plan = running.client.add_plan(plan_of("line").path).plan
    with pytest.raises(UmbelError, match=r"at most|<= "):
        running.client.post("/v1/runs", {"population": POPULATION, "plan": plan, **wanted})
    with pytest.raises(UmbelError, match=r"at most|<= |no run"):
        running.client.post("/v1/runs/latest/clone", wanted)


def test_the_server_says_how_it_is_while_its_database_is_locked(running: RunningServer, device: ScriptedDevice) -> None:
    request = EnrolmentRequest(
        device.name, "phone", signing.public_key(device.key), running.state.enrolment_secret, POPULATION
    )
    body, admin = sign_request(request, device.key), {"Authorization": f"Bearer {running.state.admin_token}"}
    start = msgspec.json.encode({"population": POPULATION, "plan": "0" * 64, "from_run": "latest"})
    asked: list[tuple[str, str, dict[str, object]]] = [
        ("POST", "/v1/enrol", {"content": body}),
        ("POST", "/v1/runs", {"content": start, "headers": admin}),
        ("POST", "/v1/runs/latest/clone", {"content": b'{"from_run": "latest"}', "headers": admin}),
        *[("GET", "/v1/devices", {"headers": admin})] * 50,
    ]
    answers: list[int] = []
    with closing(sqlite3.connect(running.state.folder / "umbel.sqlite", isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        threads = [
            threading.Thread(
                target=lambda one=one: answers.append(ask(running, one[0], one[1], timeout=30, **one[2]).status_code)
            )
            for one in asked
        ]
        for thread in threads:
            thread.start()
        for _ in range(100):  # the requests above arrive meanwhile
            assert ask(running, "GET", "/v1/health", timeout=1.0).status_code == 200
        assert answers == []
        lock.execute("ROLLBACK")
    for thread in threads:
        thread.join(30)
    assert len(answers) == len(asked)
    assert max(answers) < 500


def test_a_tampered_plan_is_refused(running: RunningServer, plan_of: Callable[[str], Plan], tmp_path: Path) -> None:
    data = bytearray(plan_of("line").path.read_bytes())
    data[len(data) // 3] ^= 4
    path = tmp_path / "tampered.plan"
    path.write_bytes(data)
    with pytest.raises(UmbelError, match="changed"):
        running.client.add_plan(path)


def test_the_keys_of_devices_and_server_are_not_shown(running: RunningServer, device: ScriptedDevice) -> None:
    shown = msgspec.json.encode(running.client.get(f"/v1/devices/{POPULATION}/{device.name}")).decode()
    assert signing.public_key(device.key).x not in shown
    assert running.state.admin_token not in shown
    assert httpx.get(running.state.server_url + "/v1/health", trust_env=False).json() == {"ok": True, "broker": True}
