"""Who answers in the server's or the broker's place: with older TLS, none, or a certificate that is not right for it."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import CertificateSigningRequestBuilder, Name

from tests.waiting import eventually
from umbel import signing
from umbel.enrolment import CONNECTION_PATH
from umbel.errors import UmbelError
from umbel.mqtt import Link
from umbel.tls import client_context
from umbel_edge.config import AgentConfig
from umbel_edge.connection.http import ServerHttp
from umbel_server.client import Client, NoAnswer
from umbel_server.security import pki
from umbel_server.state_folder import Config, State, init_state

NAMES = ("localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    return init_state(tmp_path_factory.mktemp("downgrade") / "state", Config())


def serving(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def right(state: State, folder: Path) -> ssl.SSLContext:
    return pki.server_context(state.folder)


def older(state: State, folder: Path) -> ssl.SSLContext:
    context = pki.server_context(state.folder)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def issued(state: State, folder: Path, names: tuple[str, ...], now: datetime) -> ssl.SSLContext:
    pair = pki.Pair(folder / "x.pem", folder / "x-key.pem", pki.SERVER, names)
    pair.keep(state.folder, now)
    return serving(pair.certificate, pair.key)


def expired(state: State, folder: Path) -> ssl.SSLContext:
    return issued(state, folder, NAMES, datetime.now(UTC) - timedelta(days=pki.DAYS + 2))


def not_yet(state: State, folder: Path) -> ssl.SSLContext:
    return issued(state, folder, NAMES, datetime.now(UTC) + timedelta(days=10))


def elsewhere(state: State, folder: Path) -> ssl.SSLContext:
    return issued(state, folder, ("other.example",), datetime.now(UTC))


def foreign(state: State, folder: Path) -> ssl.SSLContext:
    return issued(init_state(folder / "foreign", Config()), folder, NAMES, datetime.now(UTC))


def devices(state: State, folder: Path) -> ssl.SSLContext:
    """A device's own certificate, of the true authority, with which it would like to be the server."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = CertificateSigningRequestBuilder().subject_name(Name([])).sign(key, SHA256())
    pem = request.public_bytes(serialization.Encoding.PEM)
    certificate = pki.certify(state.folder, pem, "home/phone", datetime.now(UTC))
    (folder / "x.pem").write_text(certificate)
    kind, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "x-key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, none))
    return serving(folder / "x.pem", folder / "x-key.pem")


def plain(state: State, folder: Path) -> None:
    return None


WRONG: dict[str, Callable[[State, Path], ssl.SSLContext | None]] = {
    kind.__name__: kind for kind in (older, expired, not_yet, elsewhere, foreign, devices, plain)
}


class Answering:
    """Listens, and answers "200 OK" to whatever comes; `heard` is what came, as far as it could be read."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.heard: list[bytes] = []
        self.asked = 0
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.asked += 1
            sock.settimeout(5)
            try:
                if self._context is not None:
                    sock = self._context.wrap_socket(sock, server_side=True)
                self.heard.append(sock.recv(65536))
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            except OSError:
                continue
            finally:
                sock.close()


@pytest.fixture(params=["right", *WRONG])
def answering(request: pytest.FixtureRequest, state: State, tmp_path: Path) -> Iterator[tuple[str, Answering]]:
    kind = request.param
    made = Answering((WRONG | {"right": right})[kind](state, tmp_path))
    yield kind, made
    made.stop()


def readable(heard: list[bytes], kind: str) -> list[bytes]:
    """What whoever answers could read of it: the beginning of a TLS connection says nothing."""
    return [data for data in heard if data and not (kind == "plain" and data[0] == 0x16)]


def test_a_device_tells_nothing_to_who_answers_for_the_api(
    state: State, tmp_path: Path, answering: tuple[str, Answering]
) -> None:
    kind, server = answering
    config = AgentConfig("phone", "home", "phone", f"https://127.0.0.1:{server.port}", tmp_path / "x", tmp_path / "s")
    http = ServerHttp(config, signing.generate_key(), threading.Event())
    http.use(state.trust)
    if kind == "right":
        assert http.until_answered("GET", CONNECTION_PATH, attempts=1) == b"{}"
        assert b"Authorization" in server.heard[0]
        return
    with pytest.raises(UmbelError, match="does not answer") as refused:
        http.until_answered("GET", CONNECTION_PATH, attempts=1)
    now = datetime.now(UTC)
    assert (f"if it is not {now:%Y-%m-%d}" in str(refused.value)) == (kind in ("expired", "not_yet"))
    assert server.asked == 1
    assert readable(server.heard, kind) == []


def test_a_device_tells_nothing_to_who_answers_for_the_broker(
    state: State, answering: tuple[str, Answering], caplog: pytest.LogCaptureFixture
) -> None:
    kind, server = answering
    link = Link("127.0.0.1", server.port, "phone", ("x",), lambda *_: None, tls=client_context(state.ca))
    link.start()
    if kind == "right":
        eventually(lambda: any(data[:1] == b"\x10" for data in server.heard))  # CONNECT
    else:
        eventually(lambda: "trying again" in caplog.text)
        assert readable(server.heard, kind) == []
    assert not link.is_up
    link.stop()


def test_neither_does_an_administrator_nor_the_server_itself(state: State, answering: tuple[str, Answering]) -> None:
    kind, server = answering
    client = Client(f"https://127.0.0.1:{server.port}", "a secret token", state.context())
    if kind == "right":
        assert client.get("/v1/health") == {}
    else:
        with pytest.raises(NoAnswer):
            client.get("/v1/health")
    link = Link("127.0.0.1", server.port, "umbel-server", (), lambda *_: None, tls=state.broker_context())
    asked = server.asked
    link.start()
    eventually(lambda: server.asked > asked)
    link.stop()
    if kind != "right":
        assert readable(server.heard, kind) == []
