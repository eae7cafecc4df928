"""TLS on HTTP and MQTT: who listens on the way learns nothing, who answers for the server is found out."""

import logging
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import msgspec
import pytest
import tomli_w

from tests.server_harness import POPULATION, RunningServer, config_of
from tests.waiting import eventually
from umbel import signing
from umbel.enrolment import Trust, make_token
from umbel.errors import UmbelError
from umbel.mqtt import Link
from umbel.plan import Plan
from umbel.tls import client_context
from umbel_edge.agent import Agent
from umbel_edge.config import AgentConfig
from umbel_edge.connection.enrolment import connect
from umbel_edge.connection.http import ServerHttp
from umbel_edge.connection.participation import Participation
from umbel_edge.device.state import AgentState
from umbel_server.cli.open_client import open_client
from umbel_server.client import Client, NoAnswer
from umbel_server.runs.settings import RunSettings
from umbel_server.security import pki
from umbel_server.state_folder import CONFIG, Config, Http, Mqtt, init_state, open_state
from umbel_sim.demo.processes import free_port

PlanOf = Callable[[str], Plan]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path / "server", free_port(), tls=True)
    yield server
    server.stop()


def enrol(config: AgentConfig) -> Trust | None:
    """Enrol once, without connecting; what is pinned then."""
    state = AgentState(config.state)
    try:
        http = ServerHttp(config, state.key, threading.Event())
        connect(http, config, state, Participation(threading.Event(), lambda: None))
        return state.pinned()
    finally:
        state.close()


def test_who_keeps_a_connection_does_not_keep_the_server_from_stopping(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    running = RunningServer(tmp_path / "server", free_port(), tls=True)
    with httpx.Client(verify=running.state.context(), trust_env=False) as client:
        assert client.get(running.state.server_url + "/v1/health").status_code == 200
        running.stop()
    assert "shutdown exceeded" not in capfd.readouterr().err


def test_an_agent_trains_over_tls(running: RunningServer, tmp_path: Path, plan_of: PlanOf) -> None:
    agent = Agent(config_of(running, tmp_path / "phone"))
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    running.wait_online(1)
    plan = running.server.plans.add(plan_of("line").path)
    settings = msgspec.convert({"rounds": 2, "policy": {"deadline": 30.0, "attempts": 1}}, RunSettings)
    id = running.server.runs.start(POPULATION, plan.sha256, settings).id
    eventually(lambda: running.server.runs.get(id).state != "running", 40)
    assert running.server.runs.get(id).state == "finished"
    agent.stop()
    thread.join(15)


def test_nobody_gets_an_answer_with_older_tls(running: RunningServer) -> None:
    context = running.state.context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    sock = socket.create_connection(("127.0.0.1", running.state.config.http.port), 5)
    with sock, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(sock, server_hostname="localhost")


def test_a_device_does_not_speak_older_tls(running: RunningServer) -> None:
    """The embedded broker would."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = pki.server_context(running.state.folder)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    refusals: list[str] = []

    def answer() -> None:
        sock, _ = listener.accept()
        try:
            context.wrap_socket(sock, server_side=True)
        except ssl.SSLError as error:
            refusals.append(error.reason)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    link = Link("127.0.0.1", listener.getsockname()[1], "x", (), lambda *_: None, tls=client_context(running.state.ca))
    link.start()
    thread.join(10)
    link.stop()
    listener.close()
    assert refusals == ["UNSUPPORTED_PROTOCOL"]


@pytest.mark.parametrize("which", ["http", "mqtt"])
def test_nobody_gets_an_answer_without_tls(running: RunningServer, which: str) -> None:
    port = running.state.config.http.port if which == "http" else running.state.config.mqtt.port
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            answer = sock.recv(1000)
        except ConnectionError:
            answer = b""
        assert b"HTTP/1.1 200" not in answer


def test_an_administrator_trusts_the_authority_of_the_state_folder_alone(
    running: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_client(running.state.folder).get("/v1/health")["ok"]
    other = init_state(tmp_path / "other", Config())
    impostor = Client(running.state.server_url, "token", other.context())
    with pytest.raises(NoAnswer, match="certificate verify failed"):
        impostor.get("/v1/health")
    monkeypatch.setenv("UMBEL_URL", running.state.server_url)
    monkeypatch.setenv("UMBEL_TOKEN", running.state.admin_token)
    monkeypatch.setenv("UMBEL_CA", str(running.state.folder / pki.CA))
    assert open_client(tmp_path / "nowhere").get("/v1/devices") == []
    monkeypatch.setenv("UMBEL_CA", str(tmp_path / "none.pem"))
    with pytest.raises(UmbelError, match="UMBEL_CA should name the server's ca"):
        open_client(tmp_path / "nowhere")


def test_a_device_pins_the_authority_and_the_key(running: RunningServer, tmp_path: Path) -> None:
    assert enrol(config_of(running, tmp_path / "phone")) == running.state.trust


def test_a_token_of_another_server_is_refused(running: RunningServer, tmp_path: Path) -> None:
    config = config_of(running, tmp_path / "phone")
    same_key = Trust(running.state.trust.server_key, init_state(tmp_path / "other", Config()).ca)
    other_key = Trust(signing.public_key(signing.generate_key()), running.state.ca)
    for trust in (same_key, other_key, Trust(running.state.trust.server_key)):
        wrong = msgspec.structs.replace(config, enrolment_token=make_token(running.state.enrolment_secret, trust))
        with pytest.raises(UmbelError, match="it is another server"):
            enrol(wrong)
    assert running.server.devices.list(POPULATION) == []
    state = AgentState(config.state)
    assert state.pinned() is None
    state.close()


class Impostor:
    """Answers for a server, with a certificate of its own authority or without TLS, and what that server says of whom to
    trust."""

    def __init__(self, folder: Path, running: RunningServer, tls: bool = True) -> None:
        seen = self.seen = list[str]()
        trust = msgspec.json.encode(running.state.trust)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(trust)))
                self.end_headers()
                self.wfile.write(trust)

            def do_POST(self) -> None:
                seen.append(self.path + " " + self.rfile.read(int(self.headers["Content-Length"])).decode())

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            self._server.socket = pki.server_context(init_state(folder, Config()).folder).wrap_socket(
                self._server.socket, server_side=True
            )
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_who_passes_on_the_true_trust_does_not_get_the_secret(
    running: RunningServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    impostor = Impostor(tmp_path / "impostor", running)
    config = msgspec.structs.replace(config_of(running, tmp_path / "phone"), server=impostor.url)
    state, stopping = AgentState(config.state), threading.Event()
    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(
            target=lambda: _quietly(ServerHttp(config, state.key, stopping), config, state, stopping), daemon=True
        )
        thread.start()
        eventually(lambda: "certificate verify failed" in caplog.text)
    stopping.set()
    thread.join(10)
    state.close()
    impostor.stop()
    assert impostor.seen == ["/v1/trust"]


@pytest.mark.parametrize("enrolled", [False, True])
def test_who_answers_without_tls_gets_no_secret_and_is_not_believed(
    running: RunningServer, tmp_path: Path, enrolled: bool
) -> None:
    config = config_of(running, tmp_path / "phone")
    if enrolled:
        enrol(config)
    impostor = Impostor(tmp_path / "impostor", running, tls=False)
    with pytest.raises(UmbelError, match="this server uses TLS; write its URL with https://"):
        enrol(msgspec.structs.replace(config, server=impostor.url))
    impostor.stop()
    assert impostor.seen == ([] if enrolled else ["/v1/trust"])


def _quietly(http: ServerHttp, config: AgentConfig, state: AgentState, stopping: threading.Event) -> None:
    try:
        connect(http, config, state, Participation(stopping, lambda: None))
    except UmbelError:
        return


def test_a_device_does_not_connect_to_a_broker_of_another_authority(
    running: RunningServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = init_state(tmp_path / "other", Config())
    port = running.state.config.mqtt.port
    links = [
        Link("127.0.0.1", port, f"link-{number}", (), lambda *_: None, tls=context)
        for number, context in enumerate((running.state.context(), other.context(), None))
    ]
    for link in links:
        link.start()
    assert links[0].wait_up(10)
    eventually(
        lambda: {r.threadName for r in caplog.records if "trying again" in r.message} >= {"mqtt-link-1", "mqtt-link-2"}
    )
    assert [link.is_up for link in links] == [True, False, False]
    for link in links:
        link.stop()


def test_keys_stay_private_and_are_shown_by_nobody(running: RunningServer) -> None:
    folder = running.state.folder
    for name in (pki.CA_KEY, pki.CERTIFICATE_KEY, "signing-key.pem", "admin-token", CONFIG):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    shown = httpx.get(running.state.server_url + "/v1/trust", verify=running.state.context(), trust_env=False).text
    assert "PRIVATE" not in shown
    assert "BEGIN CERTIFICATE" in shown


def test_a_state_folder_from_before_tls_stays_without(tmp_path: Path) -> None:
    state = init_state(tmp_path / "old", Config(http=Http(tls=False), mqtt=Mqtt(tls=False)))
    assert not (state.folder / pki.CA).exists()
    table = {"schema": 1, "http": {"port": 1}, "mqtt": {"host": "127.0.0.1"}}
    (state.folder / CONFIG).write_text(tomli_w.dumps(table))
    opened = open_state(state.folder)
    assert (opened.tls, opened.server_url) == (False, "http://127.0.0.1:1")
    assert opened.trust == Trust(signing.public_key(opened.key))


def test_a_state_folder_without_its_authority_is_not_opened(tmp_path: Path) -> None:
    state = init_state(tmp_path / "state", Config())
    (state.folder / pki.CA_KEY).unlink()
    with pytest.raises(UmbelError, match=r"ca-key.pem is missing; restore it"):
        open_state(state.folder)


def test_a_device_that_was_enrolled_without_tls_asks_for_the_authority(running: RunningServer, tmp_path: Path) -> None:
    config = config_of(running, tmp_path / "phone")
    state = AgentState(config.state)
    state.pin(Trust(running.state.trust.server_key))
    state.close()
    assert enrol(config) == running.state.trust


def test_the_certificate_names_what_devices_call_the_server(tmp_path: Path) -> None:
    config = Config(hostnames=["umbel.example"], mqtt=Mqtt(advertised_host="broker.example"))
    state = init_state(tmp_path / "state", config)
    assert {"umbel.example", "broker.example", "127.0.0.1", "localhost"} <= set(state.names)
    assert not {"", "0.0.0.0"} & set(replace(state, config=Config(http=Http(host="0.0.0.0"))).names)
