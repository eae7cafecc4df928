"""A server that is none, or was taken over: what a device believes of it, and how much of it."""

import gzip
import logging
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from umbel import signing
from umbel.enrolment import BLOB_PATH, CONNECTION_PATH, UPLOAD_PATH
from umbel.errors import UmbelError
from umbel.messages import Blob
from umbel_edge.config import AgentConfig
from umbel_edge.connection.http import ANSWER_BYTES, Refused, ServerHttp
from umbel_edge.connection.resumable_downloads import Downloads
from umbel_edge.connection.resumable_uploads import Uploads
from umbel_edge.device.state import AgentState

PACKED = 200_000_000
"""What a few bytes would unpack to."""
PIECE = bytes(1 << 16)


class Hostile(ThreadingHTTPServer):
    """Answers every request as `answer` does."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda request: None
        self.paths: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hostile

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.close_connection = True
        try:
            self.server.answer(self)
        except OSError:
            return  # the device had enough

    do_PUT = do_HEAD = do_POST = do_PATCH = do_GET

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    server = Hostile()
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


def device_of(hostile: Hostile, folder: Path) -> ServerHttp:
    config = AgentConfig("phone", "home", "phone", hostile.url, folder / "x.npz", folder / "state")
    return ServerHttp(config, signing.generate_key(), threading.Event())


def answers(body: bytes, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def raw(answer: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """This and nothing more, also to an upload, which is read."""

    def write(request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers.get("Content-Length", "0")))
        request.wfile.write(answer)

    return write


def endless(status: int) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer of 10 GB, or of as much as is taken."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(10_000_000_000))
        request.end_headers()
        while True:
            request.wfile.write(PIECE)

    return answer


def peak(call: Callable[[], object]) -> int:
    """The most bytes that Python held more while `call` ran than before."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BOMB = gzip.compress(bytes(PACKED))


@pytest.mark.parametrize("status", [200, 401, 503])
@pytest.mark.parametrize("how", ["packed", "endless"])
def test_no_answer_fills_a_devices_memory(hostile: Hostile, tmp_path: Path, status: int, how: str) -> None:
    hostile.answer = endless(status) if how == "endless" else answers(BOMB, status, Content_Encoding="gzip")
    device, refusals = device_of(hostile, tmp_path), list[str]()

    def ask() -> None:
        try:
            answer = device.until_answered("GET", CONNECTION_PATH, attempts=1)
            assert len(answer) <= ANSWER_BYTES + 1
        except UmbelError as error:
            refusals.append(str(error))

    assert peak(ask) < 4 * max(len(BOMB), ANSWER_BYTES)
    assert (refusals == []) == (status == 200)


@pytest.mark.parametrize("size", [1000, 1_000_000])
@pytest.mark.parametrize("how", ["packed", "endless"])
def test_a_blob_that_unpacks_to_much_or_never_ends_is_not_taken(
    hostile: Hostile, tmp_path: Path, size: int, how: str
) -> None:
    data = gzip.compress(bytes(size))
    hostile.answer = endless(200) if how == "endless" else answers(data, Content_Encoding="gzip")
    device, blob = Downloads(device_of(hostile, tmp_path)), Blob("0" * 64, size)

    def fetch() -> None:
        with pytest.raises(UmbelError, match=r"arrived with digest|the server sends more"):
            device.fetch(blob, tmp_path / "downloads", lambda: None)

    assert peak(fetch) < 4 * max(size, 1 << 18)
    assert sum(part.stat().st_size for part in tmp_path.rglob("*.part")) <= size + (1 << 17)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_device_is_sent_nowhere_else(hostile: Hostile, tmp_path: Path, status: int) -> None:
    hostile.answer = answers(b"", status, Location=f"{hostile.url}/elsewhere")
    device = device_of(hostile, tmp_path)
    with pytest.raises(Refused, match=str(status)):
        device.request("GET", CONNECTION_PATH)
    with pytest.raises(Refused, match=str(status)):
        device.until_answered("POST", CONNECTION_PATH, b"secret", signed=False)
    assert hostile.paths == [CONNECTION_PATH] * 2


def test_an_upload_that_is_pointed_elsewhere_does_not_count_as_arrived(hostile: Hostile, tmp_path: Path) -> None:
    hostile.answer = answers(b"", 307, Location=f"{hostile.url}/elsewhere")
    state = AgentState(tmp_path / "state")
    data = bytes(100_000)
    with pytest.raises(Refused):
        Uploads(device_of(hostile, tmp_path), state.uploads).send("command", data)
    assert hostile.paths == [BLOB_PATH.format(sha256=Blob.of(data).sha256)]
    state.close()


@pytest.mark.parametrize("offset", [b"\xb2", b"9" * 5000, b"-1", b"100001", b"", b"1_0"])
def test_an_upload_begins_anew_where_the_server_names_no_place_in_it(
    hostile: Hostile, tmp_path: Path, offset: bytes
) -> None:
    hostile.answer = raw(b"HTTP/1.1 204 No Content\r\nConnection: close\r\nUpload-Offset: " + offset + b"\r\n\r\n")
    state, blob = AgentState(tmp_path / "state"), Blob.of(bytes(100_000))
    state.uploads.begin(blob.sha256, 0.0)
    sent = Uploads(device_of(hostile, tmp_path), state.uploads)
    sent.send("command", bytes(100_000))
    assert hostile.paths == [UPLOAD_PATH.format(sha256=blob.sha256), BLOB_PATH.format(sha256=blob.sha256)]
    state.close()


@pytest.mark.parametrize(
    "date",
    [
        "",
        "x",
        "Mon, 01 Jan 0001 00:00:00 GMT",
        "Mon, 01 Jan 9999 00:00:00 -2359",
        "Mon, 01 Jan 99999999999 00:00:00 GMT",
        f"Mon, 01 Jan 2026 00:00:00 +{'9' * 400}",
        "1 Jan 2026 99:99:99 +9999",
    ],
)
def test_a_date_that_is_none_changes_no_clock(hostile: Hostile, tmp_path: Path, date: str) -> None:
    body = b'{"error": "wrong clock", "code": "clock"}'
    hostile.answer = raw(
        f"HTTP/1.1 401 Unauthorized\r\nDate: {date}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    with pytest.raises(Refused, match="wrong clock"):
        device_of(hostile, tmp_path).request("GET", CONNECTION_PATH)


def test_what_a_server_says_moves_no_cursor_and_is_one_line(hostile: Hostile, tmp_path: Path) -> None:
    hostile.answer = answers(b'{"error": "\\u001b[2J sorry\\numbel-agent: phone is enrolled"}', 403)
    with pytest.raises(Refused) as refused:
        device_of(hostile, tmp_path).ask_trust("A" * 43, attempts=1)
    assert str(refused.value) == r"\x1b[2J sorry\numbel-agent: phone is enrolled"


@pytest.mark.parametrize(
    "body", [b"{" * 60_000, b"[" * 60_000, b'{"error":' * 5000, b"\xff\xfe" * 100, b'{"error": 1}', b"null", b""]
)
@pytest.mark.parametrize("status", [200, 403, 429])
def test_an_answer_that_makes_no_sense_is_refused_with_a_sentence(
    hostile: Hostile, tmp_path: Path, body: bytes, status: int
) -> None:
    hostile.answer = answers(body, status)
    with pytest.raises(UmbelError) as refused:
        device_of(hostile, tmp_path).ask_trust("A" * 43, attempts=1)
    assert hostile.url in str(refused.value) or str(status) in str(refused.value)


def test_a_head_that_never_ends_is_given_up(hostile: Hostile, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            request.wfile.write(b"X-A: " + b"a" * 1000 + b"\r\n")

    hostile.answer = answer
    with caplog.at_level(logging.WARNING), pytest.raises(UmbelError, match="does not answer"):
        device_of(hostile, tmp_path).until_answered("GET", CONNECTION_PATH, attempts=1)
