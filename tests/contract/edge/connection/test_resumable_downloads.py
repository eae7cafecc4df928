"""Downloads over a bad link: a real socket that breaks, stalls half-way and sends wrong bytes."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from umbel import signing
from umbel.errors import UmbelError
from umbel.messages import Blob
from umbel_edge.config import AgentConfig
from umbel_edge.connection.http import ServerHttp
from umbel_edge.connection.resumable_downloads import Downloads
from umbel_edge.waiting import Stopped

DATA = np.random.default_rng(0).bytes(600_000)
BLOB = Blob.of(DATA)


class BadLink(ThreadingHTTPServer):
    """Serves DATA; of each of the first `breaks` answers only `part` bytes arrive. Remembers the Range headers."""

    daemon_threads = True

    def __init__(self) -> None:
        self.breaks, self.part, self.data, self.fail = 0, 200_000, DATA, 0
        self.ranges: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: BadLink

    def do_GET(self) -> None:
        link = self.server
        wanted = self.headers.get("Range", "")
        link.ranges.append(wanted)
        if link.fail:
            link.fail -= 1
            self.send_error(503)
            return
        start = int(wanted[len("bytes=") : -1]) if wanted else 0
        body = link.data[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if link.breaks:
            link.breaks -= 1
            self.wfile.write(body[: link.part])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def link() -> Iterator[BadLink]:
    server = BadLink()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def downloads_of(link: BadLink, folder: Path, stopping: threading.Event | None = None) -> Downloads:
    url = f"http://127.0.0.1:{link.server_address[1]}"
    config = AgentConfig("phone", "test", "phone", url, "s." + "A" * 43, folder / "x.npz", folder)
    return Downloads(ServerHttp(config, signing.generate_key(), stopping or threading.Event()))


def test_a_download_that_breaks_twice_goes_on_where_it_stopped(link: BadLink, tmp_path: Path) -> None:
    link.breaks = 2
    assert downloads_of(link, tmp_path).fetch(BLOB, tmp_path) == DATA
    assert link.ranges[0] == ""
    offsets = [int(wanted[len("bytes=") : -1]) for wanted in link.ranges[1:]]
    assert offsets == sorted(offsets)
    assert all(offset > 0 for offset in offsets)
    assert not list(tmp_path.glob("*.part"))


def test_what_a_killed_agent_had_fetched_is_not_fetched_again(link: BadLink, tmp_path: Path) -> None:
    (tmp_path / f"{BLOB.sha256}.part").write_bytes(DATA[:500_000])
    assert downloads_of(link, tmp_path).fetch(BLOB, tmp_path) == DATA
    assert link.ranges == ["bytes=500000-"]


def test_a_server_that_is_busy_is_asked_again(link: BadLink, tmp_path: Path) -> None:
    link.fail = 2
    assert downloads_of(link, tmp_path).fetch(BLOB, tmp_path) == DATA


@pytest.mark.parametrize("data", [DATA[:-1] + b"x", DATA + b"more", DATA[:-9]])
def test_bytes_of_another_digest_are_not_used(link: BadLink, tmp_path: Path, data: bytes) -> None:
    link.data = data
    with pytest.raises(UmbelError, match=r"digest|the server sends more|could not be reached"):
        downloads_of(link, tmp_path).fetch(BLOB, tmp_path)
    link.data = DATA
    assert downloads_of(link, tmp_path).fetch(BLOB, tmp_path) == DATA


def test_an_agent_that_stops_does_not_wait_for_the_link(link: BadLink, tmp_path: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    link.fail = 99
    with pytest.raises(Stopped):
        downloads_of(link, tmp_path, stopping).fetch(BLOB, tmp_path)


def test_small_blobs_in_messages_need_no_request(link: BadLink, tmp_path: Path) -> None:
    assert downloads_of(link, tmp_path).fetch(Blob.of(b"small"), tmp_path) == b"small"
    assert link.ranges == []
