"""The token of a device's request is for that request alone: its method, path, body and place in an upload, for a minute, once."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.server_harness import POPULATION, RunningServer, ScriptedDevice, config_of, serving
from tests.signed_requests import signed
from umbel.enrolment import CERTIFICATE_PATH, CLOCK_TOLERANCE, CONNECTION_PATH, TOKEN_SECONDS
from umbel.messages import Blob, Infer
from umbel.tensors import digest
from umbel_edge.config import AgentConfig
from umbel_edge.connection.enrolment import connect
from umbel_edge.connection.http import Busy, Refused, ServerHttp
from umbel_edge.connection.participation import Participation
from umbel_edge.device.state import AgentState
from umbel_server.limits.rates import Limits, RequestLimits

DATA = np.random.default_rng(0).bytes(300_000)
SHA256 = digest(DATA)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("tokens") / "server") as server:
        yield server


@pytest.fixture(scope="module")
def device(running: RunningServer) -> Iterator[ScriptedDevice]:
    scripted = ScriptedDevice(running, "scripted", lambda c: None)
    yield scripted
    scripted.stop()


@pytest.fixture
def command(running: RunningServer, device: ScriptedDevice) -> str:
    with running.server.database.transaction() as session:
        return running.server.outbox.add(session, POPULATION, device.name, Infer(Blob.of(b"")), 600.0).id


def limits_of(**rates: float) -> RequestLimits:
    """Limits for which no time passes: what may be used at once, and no more."""
    return RequestLimits(Limits(**rates), clock=lambda: 0.0)  # type: ignore[arg-type]


def ask(running: RunningServer, method: str, path: str, **options: object) -> httpx.Response:
    return httpx.request(method, running.state.server_url + path, trust_env=False, **options)  # type: ignore[arg-type]


def test_a_small_body_is_bound_by_its_digest(running: RunningServer, device: ScriptedDevice) -> None:
    for body, status in ((b"asked", 400), (b"another", 401), (b"", 401)):
        headers = signed(device.key, POPULATION, device.name, "POST", CERTIFICATE_PATH, body=digest(b"asked"))
        answer = ask(running, "POST", CERTIFICATE_PATH, content=body, headers=headers)
        assert answer.status_code == status, answer.text  # 400: a server without TLS certifies nobody
        assert ("another body" in answer.json()["error"]) == (status == 401)


@pytest.mark.parametrize("query", ["?population=other", "?x=1"])
def test_the_query_is_bound_with_the_path(running: RunningServer, device: ScriptedDevice, query: str) -> None:
    headers = signed(device.key, POPULATION, device.name, "GET", CONNECTION_PATH)
    assert ask(running, "GET", CONNECTION_PATH, headers=headers).status_code == 200
    assert ask(running, "GET", CONNECTION_PATH + query, headers=headers).status_code == 401


@pytest.mark.parametrize("off", [-CLOCK_TOLERANCE, -TOKEN_SECONDS - 5, TOKEN_SECONDS + 5, CLOCK_TOLERANCE])
def test_a_token_is_good_for_a_minute(running: RunningServer, device: ScriptedDevice, off: float) -> None:
    headers = signed(device.key, POPULATION, device.name, "GET", CONNECTION_PATH, at=time.time() + off)
    answer = ask(running, "GET", CONNECTION_PATH, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "clock")


def test_what_changes_something_is_taken_once(running: RunningServer, device: ScriptedDevice, command: str) -> None:
    path = f"/v1/blobs/{SHA256}"
    headers = signed(device.key, POPULATION, device.name, "PUT", path, command)
    assert ask(running, "PUT", path, content=DATA, headers=headers).status_code == 200
    again = ask(running, "PUT", path, content=DATA, headers=headers)
    assert (again.status_code, "used before" in again.json()["error"]) == (401, True)
    without = signed(device.key, POPULATION, device.name, "PUT", path, command, nonce="")
    assert ask(running, "PUT", path, content=DATA, headers=without).status_code == 401
    long = signed(device.key, POPULATION, device.name, "PUT", path, command, nonce="x" * 65)
    assert ask(running, "PUT", path, content=DATA, headers=long).status_code == 401
    fresh = signed(device.key, POPULATION, device.name, "PUT", path, command)
    assert ask(running, "PUT", path, content=DATA, headers=fresh).status_code == 200


def test_a_token_from_before_the_server_started_is_to_be_signed_anew(
    running: RunningServer, device: ScriptedDevice, command: str
) -> None:
    path = f"/v1/blobs/{SHA256}"
    before = running.server.used_tokens.since - 0.5
    if time.time() - before > TOKEN_SECONDS - 5:
        running.server.used_tokens.since = (before := time.time() - 1) + 0.5
    headers = signed(device.key, POPULATION, device.name, "PUT", path, command, at=before)
    answer = ask(running, "PUT", path, content=DATA, headers=headers)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_a_replayed_or_cut_upload_makes_nothing_but_a_new_beginning(
    running: RunningServer, device: ScriptedDevice, command: str
) -> None:
    """Who has the tokens of an upload can spoil what came of it; nothing else comes to the server, and the sender sends again."""
    whole, part = f"/v1/blobs/{SHA256}", f"/v1/uploads/{SHA256}"

    def send(method: str, path: str, data: bytes, offset: int = 0, claimed: int | None = None) -> httpx.Response:
        at = offset if claimed is None else claimed
        headers = signed(device.key, POPULATION, device.name, method, path, command, offset=offset)
        more = {"Upload-Offset": str(at)} if method == "PATCH" else {}
        return ask(running, method, path, content=data, headers=headers | more)

    store = running.server.received_blobs.of(command)
    parts = running.state.folder / "uploads" / "commands" / command
    assert send("PATCH", part, DATA[100:], offset=100, claimed=200).status_code == 401  # another place than was signed
    parts.mkdir(parents=True)
    (parts / f"{SHA256}.part").write_bytes(DATA[:1000])  # an upload that broke off
    assert send("PATCH", part, b"x" * 299_000, offset=1000).status_code == 422
    assert list(parts.glob("*")) == []
    assert not store.has(SHA256)
    (parts / f"{SHA256}.part").write_bytes(DATA[:1000])
    assert (
        send("PATCH", part, DATA[1000:-1], offset=1000).status_code == 422
    )  # cut by a byte, and sent as if it were all
    assert not store.has(SHA256)
    assert send("PUT", whole, DATA).status_code == 200
    assert store.get(SHA256) == DATA


def http_of(running: RunningServer, folder: Path, name: str, off: float = 0.0) -> ServerHttp:
    """The HTTP of an agent that is enrolled, and whose clock is off from then on."""
    config = AgentConfig(**{**attributes(config_of(running, folder)), "device": name})
    state, stopping, skew = AgentState(folder / "state"), threading.Event(), [0.0]
    http = ServerHttp(config, state.key, stopping, lambda: time.time() + skew[0])
    connect(http, config, state, Participation(stopping, lambda: None))
    state.close()
    skew[0] = off
    return http


def attributes(config: AgentConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


@pytest.mark.parametrize("off", [-250.0, -90.0, 90.0, 250.0])
def test_a_device_whose_clock_is_off_goes_by_the_servers(running: RunningServer, tmp_path: Path, off: float) -> None:
    http = http_of(running, tmp_path, f"off{int(off)}", off)
    assert b"broker_host" in http.until_answered("GET", CONNECTION_PATH, attempts=3)
    assert b"broker_host" in http.until_answered("GET", CONNECTION_PATH, attempts=1)  # from now on at once


def test_a_device_whose_clock_is_far_off_is_told_so(running: RunningServer, tmp_path: Path) -> None:
    http = http_of(running, tmp_path, "faroff", -1000.0)
    with pytest.raises(Refused, match="set the device's clock") as refused:
        http.until_answered("GET", CONNECTION_PATH, attempts=3)
    assert refused.value.code == "clock"


def test_who_signs_wrongly_asks_the_register_no_more_and_keeps_no_device_behind_his_address_out(
    running: RunningServer, device: ScriptedDevice
) -> None:
    limits = running.server.request_limits
    running.server.request_limits = limits_of(wrong_tokens_per_second=0.5)
    try:
        good = signed(device.key, POPULATION, device.name, "GET", CONNECTION_PATH)
        assert ask(running, "GET", CONNECTION_PATH, headers=good).status_code == 200
        wrong = {"Authorization": good["Authorization"][:-4] + "AAAA"}
        nobody = signed(device.key, POPULATION, "nobody", "GET", CONNECTION_PATH)
        assert [ask(running, "GET", CONNECTION_PATH, headers=nobody).status_code for _ in range(2)] == [401] * 2
        assert [ask(running, "GET", CONNECTION_PATH, headers=wrong).status_code for _ in range(4)] == [401] * 4
        refused = ask(running, "GET", CONNECTION_PATH, headers=nobody)
        assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (429, True)
        assert ask(running, "GET", CONNECTION_PATH, headers=good).status_code == 200
        assert running.server.refusals.of("127.0.0.1")["tokens"] >= 7
        running.server.request_limits = limits_of(requests_per_second=1.0)
        answers = [ask(running, "GET", CONNECTION_PATH, headers=good).status_code for _ in range(12)]
        assert answers == [200] * 10 + [429] * 2
        shown = running.client.get(f"/v1/devices/{POPULATION}/{device.name}")["refused"]
        assert shown["requests"] >= 1
    finally:
        running.server.request_limits = limits


def test_enrolments_and_questions_have_a_limit_by_address(running: RunningServer, tmp_path: Path) -> None:
    limits = running.server.request_limits
    running.server.request_limits = limits_of(enrolments_per_second=0.5)
    try:
        answers = [ask(running, "GET", "/v1/trust") for _ in range(7)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
        assert "retry-after" in answers[-1].headers
        assert ask(running, "GET", "/v1/health").status_code == 200
        assert ask(running, "POST", "/v1/enrol", content=b"{}").status_code == 429
    finally:
        running.server.request_limits = limits


def test_a_body_that_is_no_blob_is_bounded(running: RunningServer, device: ScriptedDevice) -> None:
    most = running.state.config.limits.request_kb * 1000
    for size, sentence in ((most, "without TLS"), (most + 1, f"at most {most} bytes")):
        headers = signed(device.key, POPULATION, device.name, "POST", CERTIFICATE_PATH, body=digest(b"x" * size))
        answer = ask(running, "POST", CERTIFICATE_PATH, content=b"x" * size, headers=headers)
        assert (answer.status_code, sentence in answer.json()["error"]) == (400, True), answer.text


def test_an_upload_that_is_too_large_is_refused_before_its_first_byte(
    running: RunningServer, device: ScriptedDevice, command: str
) -> None:
    most = running.server.most
    path = f"/v1/blobs/{SHA256}"
    headers = signed(device.key, POPULATION, device.name, "PUT", path, command) | {"Content-Length": str(most + 1)}

    lines = [f"PUT {path} HTTP/1.1", "Host: server", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    with closing(socket.create_connection(("127.0.0.1", running.state.config.http.port), timeout=20)) as link:
        link.sendall("\r\n".join(lines).encode())
        assert link.recv(1000).startswith(b"HTTP/1.1 413")


def test_busy_is_an_answer_to_come_back(running: RunningServer, tmp_path: Path) -> None:
    http, limits = http_of(running, tmp_path, "hurried"), running.server.request_limits
    running.server.request_limits = limits_of(requests_per_second=0.1)
    try:
        http.request("GET", CONNECTION_PATH).drain_conn()
        with pytest.raises(Busy, match="asks too often") as busy:
            http.request("GET", CONNECTION_PATH)
        assert 1 <= busy.value.wait <= 10
    finally:
        running.server.request_limits = limits
