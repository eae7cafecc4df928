"""Uploads from real devices to a real server over a link that breaks: nothing is sent twice, nothing half is kept."""

import asyncio
import os
import random
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.server_harness import POPULATION, RunningServer, config_of, serving
from tests.signed_requests import signed as signed_as
from tests.tcp_proxy import TcpProxy
from tests.waiting import eventually
from umbel.errors import UmbelError
from umbel.messages import Blob, Infer
from umbel.tensors import digest
from umbel_edge.config import AgentConfig
from umbel_edge.connection.enrolment import connect
from umbel_edge.connection.http import ServerHttp
from umbel_edge.connection.participation import Participation
from umbel_edge.connection.resumable_uploads import Uploads
from umbel_edge.device.state import AgentState
from umbel_server.storage.blobs import BlobError, Blobs
from umbel_server.storage.partial_uploads import PARTS_OF_ONE
from umbel_server.storage.partial_uploads import Sender as Place
from umbel_server.storage.partial_uploads import Uploads as Parts

DATA = np.random.default_rng(0).bytes(3_000_000)
BLOB = Blob.of(DATA)
HEADERS = 2000
"""Bytes of one request's head, at most."""
SERVER_BUFFER = 65_536
"""What the HTTP server may hold of a connection that breaks, and drop."""


class Sender:
    """A device's end of an upload that answers a command, as an agent has it; `restart` is what a killed agent finds again."""

    def __init__(self, running: RunningServer, url: str, folder: Path) -> None:
        config = config_of(running, folder)
        raw = {field: getattr(config, field) for field in config.__struct_fields__}
        self.config = AgentConfig(**{**raw, "device": secrets.token_hex(4), "server": url})
        self.restart()
        connect(self._http, self.config, self.state, Participation(threading.Event(), lambda: None))
        with running.server.database.transaction() as session:
            asked = running.server.outbox.add(session, POPULATION, self.config.device, Infer(Blob.of(b"")), 600.0)
        self.command, self.store = asked.id, running.server.received_blobs.of(asked.id)
        self.parts = running.state.folder / "uploads" / "commands" / self.command

    def restart(self) -> None:
        if hasattr(self, "state"):
            self.state.close()
        self.state = AgentState(self.config.state)
        self._http = ServerHttp(self.config, self.state.key, threading.Event())
        self.uploads = Uploads(self._http, self.state.uploads)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def proxy(running: RunningServer) -> Iterator[TcpProxy]:
    with TcpProxy(running.state.config.http.port) as made:
        yield made


@pytest.fixture
def sender(running: RunningServer, proxy: TcpProxy, tmp_path: Path) -> Iterator[Sender]:
    made = Sender(running, proxy.url, tmp_path / "phone")
    yield made
    made.state.close()


def parts(running: RunningServer) -> list[str]:
    return [path.name for path in (running.state.folder / "uploads").rglob("*.part")]


def fresh(size: int) -> tuple[bytes, Blob]:
    data = os.urandom(size)
    return data, Blob.of(data)


def test_an_upload_that_is_not_interrupted_is_one_request(
    running: RunningServer, proxy: TcpProxy, sender: Sender
) -> None:
    before = proxy.sent
    assert sender.uploads.send(sender.command, DATA) == BLOB
    assert proxy.sent - before <= len(DATA) + HEADERS
    assert sender.store.get(BLOB.sha256) == DATA
    assert parts(running) == []


@pytest.mark.parametrize("seed", range(4))
def test_what_breaks_at_any_byte_goes_on_there(
    running: RunningServer, proxy: TcpProxy, sender: Sender, seed: int
) -> None:
    rng = random.Random(seed)
    data, blob = fresh(3_000_000)
    cuts = [rng.randrange(len(data) // 8) for _ in range(7)]
    before = proxy.sent
    proxy.cut_after(*cuts)
    sender.uploads.send(sender.command, data)
    assert proxy.cuts_left == 0
    assert sender.store.get(blob.sha256) == data
    resent = proxy.sent - before - len(data)
    assert resent <= len(cuts) * (2 * HEADERS + SERVER_BUFFER), f"{resent} bytes beside the {len(data)} of the blob"
    assert parts(running) == []


def test_a_killed_device_goes_on_where_it_stopped_and_sends_nothing_that_arrived(
    running: RunningServer, proxy: TcpProxy, sender: Sender
) -> None:
    data, blob = fresh(3_000_000)
    proxy.cut_after(2_000_000)
    attempts = iter(range(99))

    def killed() -> None:
        if proxy.cuts_left == 0 and next(attempts) >= 0:
            raise UmbelError("killed")

    path = sender.config.state / "update"
    path.write_bytes(data)
    before = proxy.sent
    with pytest.raises(UmbelError, match="killed"):
        sender.uploads.send_file(sender.command, blob, path, killed)
    sender.restart()
    sender.uploads.send_file(sender.command, blob, path, lambda: None)
    assert proxy.sent - before <= len(data) + 4 * HEADERS + SERVER_BUFFER
    assert sender.store.get(blob.sha256) == data


def test_a_blob_whose_answer_was_lost_is_not_sent_again(
    running: RunningServer, proxy: TcpProxy, sender: Sender
) -> None:
    data, blob = fresh(1_000_000)
    sender.state.uploads.begin(blob.sha256, time.time())
    sender.store.put(data)
    before = proxy.sent
    sender.uploads.send(sender.command, data)
    assert proxy.sent - before <= HEADERS


def test_a_link_that_stalls_and_refuses_is_survived(running: RunningServer, proxy: TcpProxy, sender: Sender) -> None:
    data, blob = fresh(3_000_000)
    path = sender.config.state / "update"
    path.write_bytes(data)
    proxy.rate = 10e6
    thread = threading.Thread(target=sender.uploads.send_file, args=(sender.command, blob, path, lambda: None))
    thread.start()
    eventually(lambda: parts(running))
    proxy.refuse()
    seen = proxy.connections
    eventually(lambda: proxy.connections > seen + 1)
    proxy.resume()
    proxy.latency = 0.02
    thread.join(30)
    assert sender.store.get(blob.sha256) == data


def test_nothing_is_sent_while_there_is_a_reason_not_to(
    running: RunningServer, proxy: TcpProxy, sender: Sender
) -> None:
    data, blob = fresh(100_000)
    path = sender.config.state / "update"
    path.write_bytes(data)
    reasons, sent = ["metered network", "metered network", ""], []

    def ready() -> str:
        sent.append(proxy.sent)
        return reasons[len(sent) - 1]

    sender.uploads.send_file(sender.command, blob, path, lambda: None, ready)
    assert len(set(sent)) == 1
    assert sender.store.get(blob.sha256) == data


def test_bytes_of_another_digest_leave_nothing(running: RunningServer, proxy: TcpProxy, sender: Sender) -> None:
    data, blob = fresh(100_000)
    wrong = data[:-1] + bytes([data[-1] ^ 1])
    path = sender.config.state / "update"
    path.write_bytes(wrong)
    with pytest.raises(UmbelError, match="should have digest"):
        sender.uploads.send_file(sender.command, blob, path, lambda: None)
    assert not sender.store.has(blob.sha256)
    assert parts(running) == []
    # A beginning that is not this blob's is found out at the end, and then the whole is sent.
    sender.state.uploads.begin(blob.sha256, time.time())
    sender.parts.mkdir(exist_ok=True)
    (sender.parts / f"{blob.sha256}.part").write_bytes(b"x" * 50_000)
    sender.uploads.send(sender.command, data)
    assert sender.store.get(blob.sha256) == data
    assert parts(running) == []


def test_two_devices_that_upload_the_same_bytes_at_once_do_not_meet(
    running: RunningServer, proxy: TcpProxy, tmp_path: Path
) -> None:
    data, blob = fresh(2_000_000)
    senders = [Sender(running, proxy.url, tmp_path / name) for name in ("car-1", "car-2")]
    proxy.cut_after(1_500_000, 1_000_000)
    threads = [threading.Thread(target=sender.uploads.send, args=(sender.command, data)) for sender in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert parts(running) == []
    for sender in senders:
        assert sender.store.get(blob.sha256) == data
        sender.state.close()


def test_a_request_that_its_sender_gave_up_writes_no_more(running: RunningServer, sender: Sender) -> None:
    """The server may not know yet that a connection is dead: whoever asks last has the upload."""
    data, blob = fresh(1_000_000)
    url, name = running.state.server_url, sender.config.device
    upload = f"/v1/uploads/{blob.sha256}"

    def signed(method: str, path: str = upload, **more: str) -> dict[str, str]:
        given = more.get("Upload-Offset", "0")
        offset = int(given) if given.isdigit() else 0
        return signed_as(sender.state.key, POPULATION, name, method, path, sender.command, offset=offset) | more

    asked = threading.Event()

    def slow() -> Iterator[bytes]:
        yield data[:400_000]
        asked.wait(20)
        yield data[400_000:]

    answers: list[int] = []

    def put() -> None:
        path = f"/v1/blobs/{blob.sha256}"
        answer = httpx.put(url + path, content=slow(), headers=signed("PUT", path), trust_env=False)
        answers.append(answer.status_code)

    thread = threading.Thread(target=put)
    thread.start()
    part = sender.parts / f"{blob.sha256}.part"
    eventually(lambda: part.exists() and part.stat().st_size == 400_000)
    with httpx.Client(base_url=url, trust_env=False) as client:
        found = client.head(upload, headers=signed("HEAD")).headers
        assert (found["Upload-Offset"], found["Upload-Complete"]) == ("400000", "?0")
        asked.set()
        thread.join(10)
        assert answers == [422]
        wrong = client.patch(upload, content=data[1:], headers=signed("PATCH", **{"Upload-Offset": "1"}))
        assert (wrong.status_code, wrong.headers["Upload-Offset"]) == (409, "400000")
        assert client.patch(upload, content=b"", headers=signed("PATCH", **{"Upload-Offset": "x"})).status_code == 400
        assert (
            client.patch(
                upload, content=data[400_000:], headers=signed("PATCH", **{"Upload-Offset": "400000"})
            ).status_code
            == 204
        )
        again = client.patch(upload, content=b"", headers=signed("PATCH", **{"Upload-Offset": "1000000"}))
        assert again.status_code == 204
        assert client.head(upload, headers=signed("HEAD")).headers["Upload-Complete"] == "?1"
    assert sender.store.get(blob.sha256) == data


def test_administrators_may_upload_the_same_bytes_at_once_and_leave_nothing(running: RunningServer) -> None:
    data, blob = fresh(3_000_000)
    threads = [threading.Thread(target=running.client.put_blob, args=(data,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert running.server.blobs.get(blob.sha256) == data
    other, bearer = digest(b"other"), {"Authorization": f"Bearer {running.state.admin_token}"}
    refused = httpx.put(f"{running.state.server_url}/v1/blobs/{other}", content=data, headers=bearer, trust_env=False)
    assert "should have digest" in refused.json()["error"]
    assert parts(running) == []


class AnnouncingStore(Blobs):
    """A store that says when a part begins to go into it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.placing = threading.Event()

    def place(self, sha256: str, path: Path) -> None:
        self.placing.set()
        super().place(sha256, path)


def test_nobody_touches_a_part_while_it_goes_into_the_store(running: RunningServer, tmp_path: Path) -> None:
    """Two requests of one sender that both have every byte: neither the store nor an answer ever shows half a blob."""
    data, blob = fresh(2_000_000)
    store = AnnouncingStore((tmp_path / "store").as_uri())
    uploads, a = Parts(tmp_path / "parts"), Place("a", store, 10**7)

    async def whole() -> AsyncIterator[bytes]:
        yield data

    async def story() -> None:
        for _ in range(20):
            store.placing.clear()
            first = asyncio.ensure_future(uploads.receive(a, blob.sha256, 0, whole()))
            while not store.placing.is_set() and not first.done():
                await asyncio.sleep(0)
            second = uploads.receive(a, blob.sha256, 0, whole())
            offset = uploads.offset(a, blob.sha256)
            _, _, told = await asyncio.gather(first, second, offset, return_exceptions=True)
            assert told == (len(data), True)
            assert a.blobs.get(blob.sha256) == data

    asyncio.run(story())


def test_parts_are_few_bounded_in_bytes_and_gone_after_a_day(running: RunningServer, tmp_path: Path) -> None:
    now = [time.time()]
    uploads = Parts(tmp_path / "parts", lambda: now[0])
    a, b = Place("a", running.server.blobs, 1000), Place("b", running.server.blobs, 1000)

    async def breaks(count: int) -> AsyncIterator[bytes]:
        yield b"x" * count
        raise ConnectionResetError

    async def story() -> None:
        for number in range(PARTS_OF_ONE + 3):
            with pytest.raises(ConnectionResetError):
                await uploads.receive(a, digest(bytes([number])), 0, breaks(10))
        assert len(list((tmp_path / "parts").rglob("*.part"))) == PARTS_OF_ONE
        with pytest.raises(BlobError, match="at most 1000 bytes"):
            await uploads.receive(b, digest(b""), 0, breaks(1001))
        now[0] += 90_000
        with pytest.raises(ConnectionResetError):
            await uploads.receive(b, digest(b"1"), 0, breaks(10))
        assert [path.stem for path in (tmp_path / "parts").rglob("*.part")] == [digest(b"1")]

    asyncio.run(story())
