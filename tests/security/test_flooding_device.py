"""A device with a key of its own that floods the API or the broker, or takes its time: the others are served all the same."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.brokers import EmbeddedProcess
from tests.security.served import (
    POPULATION,
    Enrolled,
    Served,
    answer_of,
    head_of,
)
from tests.server_harness import RunningServer, ScriptedDevice, reports, serving
from tests.settled_commands import settled
from tests.waiting import eventually
from umbel import signing, topics
from umbel.enrolment import ENROL_PATH
from umbel_server.api.bounded_http import Patience

MOST_MB = 4


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("served") / "state", MOST_MB)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def thief(served: Served) -> Enrolled:
    return Enrolled(served.state, "thief")


def test_others_are_served_while_one_floods_the_api(served: Served, thief: Enrolled) -> None:
    honest, over, flooded = Enrolled(served.state, "honest"), threading.Event(), [0] * 6
    path = f"/v1/blobs/{'0' * 64}"
    forged = thief.authorization("GET", path, key=signing.generate_key())

    def flood(number: int) -> None:
        client = httpx.Client(base_url=served.state.server_url, trust_env=False, timeout=30)
        while not over.is_set():
            client.get(path, headers={"Authorization": forged})
            client.post(ENROL_PATH, content=b'{"a":' * 1000)
            flooded[number] += 2

    threads = [threading.Thread(target=flood, args=(number,), daemon=True) for number in range(len(flooded))]
    for thread in threads:
        thread.start()
    eventually(lambda: min(flooded) > 0)
    wanted = served.client.put_blob(b"for the honest", POPULATION)
    for _ in range(20):
        assert honest.ask("GET", f"/v1/blobs/{wanted}").content == b"for the honest"
        assert served.client.get("/v1/devices", population=POPULATION)
    assert sum(flooded) > 40
    over.set()
    for thread in threads:
        thread.join(30)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningServer]:
    patience = Patience(head_seconds=0.5, body_seconds=0.5, after_seconds=0.5)
    with serving(tmp_path / "server", patience=patience) as server:
        yield server


def test_others_are_served_while_one_floods_the_broker(
    running: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    honest = ScriptedDevice(running, "honest", reports)
    thief = ScriptedDevice(running, "thief", lambda command: None)
    running.wait_online(2)
    garbage = [b"x" * 1000, b"{" * 1000, signing.sign(b"{}", thief.key), signing.sign(b"[" * 5000, thief.key)]
    names = ["honest", "thief", "nobody", "x" * 64]
    for number in range(2000):
        topic = topics.topic(POPULATION, names[number // 4 % 4], ("ack", "status", "result")[number % 3])  # type: ignore[arg-type]
        thief.link.publish(topic, garbage[number % 4])
    for _ in range(5):
        sent = running.client.post("/v1/commands", {"population": POPULATION, "kind": "report", "devices": ["honest"]})
        assert settled(running.client, sent, 30)[0]["state"] == "done"
    assert "refused" in caplog.text
    assert running.server.devices.get(POPULATION, "honest").online
    honest.stop()
    thief.stop()


# --- slowly ------------------------------------------------------------------------------------------------------------

SLOW = {
    "nothing": (b"", b""),
    "a head by single bytes": (b"GET /v1/health HTTP/1.1\r\nX-A: ", b"a"),
    "a body by single bytes": (head_of("POST", ENROL_PATH, Content_Length="60000"), b" "),
    "chunks by single bytes": (head_of("POST", ENROL_PATH, Transfer_Encoding="chunked"), b"1\r\n \r\n"),
    "after the answer": (head_of("PUT", f"/v1/blobs/{'0' * 64}", Content_Length="60000"), b" "),
    "a second head": (head_of("GET", "/v1/health") + b"GET /v1/hea", b"a"),
}


@pytest.mark.parametrize("how", SLOW)
def test_who_keeps_the_server_waiting_is_not_waited_for(
    running: RunningServer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    begins, byte = SLOW[how]
    with socket.create_connection(("127.0.0.1", running.state.config.http.port), 5) as sock:
        sock.sendall(begins)
        sock.settimeout(0.05)

        def ended() -> bool:
            try:
                if byte:
                    sock.sendall(byte)
                return sock.recv(65536) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        eventually(ended, 15)
    assert "closed a connection from 127.0.0.1" in caplog.text
    assert running.client.get("/v1/health")["ok"]


def test_many_slow_ones_keep_nobody_out(running: RunningServer) -> None:
    slow = [socket.create_connection(("127.0.0.1", running.state.config.http.port), 5) for _ in range(200)]
    for number, sock in enumerate(slow):
        sock.sendall(list(SLOW.values())[number % len(SLOW)][0])
    for _ in range(5):
        assert running.client.get("/v1/devices") == []
    for sock in slow:
        sock.settimeout(15)
        answer_of(sock)
        sock.close()


def test_who_does_not_take_its_answer_is_let_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broker = EmbeddedProcess()
    broker.start()
    running = RunningServer(tmp_path / "server", broker.port, patience=Patience(answer_seconds=0.3))
    path = f"/v1/blobs/{running.client.put_blob(bytes(20_000_000), POPULATION)}"
    with socket.create_connection(("127.0.0.1", running.state.config.http.port), 5) as sock:
        sock.sendall(head_of("GET", path, Authorization=f"Bearer {running.state.admin_token}"))
        eventually(lambda: "it does not read its answer" in caplog.text)
        sock.settimeout(10)
        assert len(answer_of(sock)) < 20_000_000
    running.stop()
    broker.stop()
