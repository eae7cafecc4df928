"""An enrolled agent at whose start something else answers in the server's place waits until the server does."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from tests.running_agent import RunningAgent
from tests.server_harness import RunningServer, config_of
from tests.tcp_proxy import TcpProxy
from tests.waiting import eventually

PAGE = b"<html>Welcome to the hotel</html>"


@pytest.fixture
def portal(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a web server that answers everything with the status of the test."""
    status: int = request.param

    class Portal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://portal.example/login")
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, format: str, *values: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Portal)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("portal", [200, 302, 403, 404], indirect=True)
def test_an_enrolled_agent_waits_and_says_what_answered(
    portal: int,
    tmp_path: Path,
    running: RunningServer,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    config = config_of(running, tmp_path / "phone")
    first = RunningAgent(config)
    running.wait_online(1)
    first.stop()
    eventually(lambda: not running.server.devices.list()[0].online)
    with TcpProxy(portal) as proxy:
        agent = RunningAgent(msgspec.structs.replace(config, server=proxy.url))
        eventually(lambda: "which no Umbel server does" in caplog.text)
        assert f"the server answered {request.node.callspec.params['portal']}" in caplog.text
        proxy.redirect(running.state.config.http.port)
        running.wait_online(1)
        agent.stop()


def test_a_proxy_that_is_not_used_is_named(
    tmp_path: Path, running: RunningServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "")
    agent = RunningAgent(config_of(running, tmp_path / "phone"))
    running.wait_online(1)
    assert "http_proxy is set (http://proxy.example:3128) and not used" in caplog.text
    agent.stop()
