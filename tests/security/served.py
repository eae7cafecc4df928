"""`umbel serve` as a process of its own, whose memory can be looked at, and strangers and devices that speak HTTP to it."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import msgspec
from joserfc.jwk import ECKey

from tests.waiting import eventually
from umbel import signing
from umbel.enrolment import ENROL_PATH, Access, EnrolmentRequest, bearer, make_nonce, sign_request
from umbel.errors import UmbelError
from umbel.tensors import digest
from umbel_server.client import Client
from umbel_server.state_folder import Config, Enrolment, Http, Mqtt, State, init_state
from umbel_sim.demo.processes import free_port

POPULATION = "test"
SERVE = "from umbel_server.cli import main; main()"
PIECE = b"\x00" * (1 << 16)


class Served:
    """A server of its own process, without TLS, with the embedded broker; ended by `stop`."""

    def __init__(self, folder: Path, max_blob_mb: int = 2048) -> None:
        config = Config(
            http=Http(port=free_port(), tls=False),
            mqtt=Mqtt(port=free_port(), tls=False),
            enrolment=Enrolment(open=True),
            max_blob_mb=max_blob_mb,
        )
        self.state: State = init_state(folder, config)
        self.log = folder.with_name("serve.log")
        command = [sys.executable, "-c", SERVE, "serve", "--state", str(folder), "--log", str(self.log)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.client = Client(self.state.server_url, self.state.admin_token)
        eventually(self.answers, 60)

    def answers(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        try:
            return bool(self.client.get("/v1/health")["broker"])
        except UmbelError:
            return False

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def forget_peak(self) -> int:
        """Resident bytes now, which are the most from now on."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")
        return self.peak()

    def peak(self) -> int:
        """The most resident bytes since they were forgotten."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self._process.pid}/status").read_text())
        assert found is not None
        return 1024 * int(found[1])

    def stored(self) -> int:
        """Bytes of everything that was uploaded and is on the disk."""
        folders = [*os.walk(self.state.folder / "blobs"), *os.walk(self.state.folder / "uploads")]
        return sum((Path(parent) / name).stat().st_size for parent, _, names in folders for name in names)

    def connect(self) -> socket.socket:
        """A connection to the API."""
        return socket.create_connection(("127.0.0.1", self.state.config.http.port), 10)


class Enrolled:
    """A device that has a key, and what it asks for."""

    def __init__(self, state: State, name: str) -> None:
        self.state, self.name, self.key = state, name, signing.generate_key()
        request = EnrolmentRequest(name, "phone", signing.public_key(self.key), state.enrolment_secret, POPULATION)
        httpx.post(
            state.server_url + ENROL_PATH, content=sign_request(request, self.key), trust_env=False, timeout=30
        ).raise_for_status()

    def authorization(self, method: str, path: str, command: str = "", key: ECKey | None = None) -> str:
        return bearer(self.access(method, path, command), key or self.key)

    def access(self, method: str, path: str, command: str = "", body: bytes | None = None) -> Access:
        """What an agent would sign for such a request."""
        access = Access(POPULATION, self.name, method, path, time.time(), command, nonce=make_nonce())
        return access if body is None else msgspec.structs.replace(access, body=digest(body))

    def ask(self, method: str, path: str, content: bytes | None = None, command: str = "") -> httpx.Response:
        headers = {"Authorization": bearer(self.access(method, path, command, content), self.key)}
        url = self.state.server_url + path
        return httpx.request(method, url, content=content, headers=headers, trust_env=False, timeout=30)


def head_of(method: str, path: str, **headers: str) -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def pour(sock: socket.socket, head: bytes, piece: bytes, most: int) -> tuple[int, bytes]:
    """Send pieces without end, or so many bytes, until the server ends it: how many went, and what it answered."""
    sent = 0
    sock.settimeout(20)
    try:
        sock.sendall(head)
        while sent < most:
            sock.sendall(piece)
            sent += len(piece)
    except (ConnectionError, BrokenPipeError):
        pass
    return sent, answer_of(sock)


def answer_of(sock: socket.socket) -> bytes:
    """What is answered until the server ends the connection."""
    answer = b""
    try:
        while data := sock.recv(1 << 16):
            answer += data
    except ConnectionError:
        pass
    return answer


def sentence_of(answer: bytes) -> str:
    """The one sentence of an answer."""
    body = answer.partition(b"\r\n\r\n")[2]
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError):
        return body.decode()
