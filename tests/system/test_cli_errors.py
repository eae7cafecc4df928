"""Bad input at the command line: one sentence, a non-zero exit, nothing changed."""

import http.server
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import ClassVar

import pytest

from tests.umbel_command import Umbel

run = Umbel().run
agent = Umbel(module="umbel_edge.cli").run


def assert_refused(done: CompletedProcess[str], sentence: str, code: int = 1) -> None:
    assert done.returncode == code, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert sentence in lines[0]


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield int(sock.getsockname()[1])


def test_a_port_in_use_is_named(tmp_path: Path, busy: int) -> None:
    assert run("init", tmp_path / "a", "--port", str(busy)).returncode == 0
    assert_refused(run("serve", "--state", tmp_path / "a", "--log", tmp_path / "log"), f"port {busy} on 127.0.0.1")
    assert_refused(run("broker", "run", "--insecure", "--port", str(busy)), f"port {busy} on 127.0.0.1")


def test_a_folder_that_is_no_state_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"jpg")
    for words in (("serve",), ("devices", "list"), ("runs", "list")):
        assert_refused(run(*words, "--state", tmp_path / "photos"), "made by 'umbel init'")
    assert_refused(run("init", tmp_path / "photos"), "new or empty folder")
    assert os.listdir(tmp_path / "photos") == ["holiday.jpg"]


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    assert run("init", tmp_path / "a").returncode == 0
    config = tmp_path / "a" / "umbel.toml"
    good = config.read_text()
    for bad, sentence in (
        (good + "\nnonsense = 1", "nonsense"),
        ("schema = [", "umbel.toml"),
        ("schema = 9", "newer Umbel"),
    ):
        config.write_text(bad)
        assert_refused(run("serve", "--state", tmp_path / "a"), sentence)


def test_a_port_that_is_none_is_refused(tmp_path: Path) -> None:
    for words in (("--port", "70000"), ("--mqtt-port", "-1")):
        assert_refused(run("init", tmp_path / "a", *words), f"{words[1]} is not in the range", 2)
    assert_refused(run("broker", "run", "--insecure", "--port", "70000"), "is not in the range", 2)
    assert not (tmp_path / "a").exists()
    assert run("init", tmp_path / "a", "--port", "7001").returncode == 0
    config = tmp_path / "a" / "umbel.toml"
    config.write_text(config.read_text().replace("7001", "70010"))
    assert_refused(run("serve", "--state", tmp_path / "a"), "$.http.port")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "x"
    assert_refused(run("init", inside), f"{inside}: not a directory")
    assert run("init", tmp_path / "a").returncode == 0
    assert_refused(run("serve", "--state", tmp_path / "a", "--log", inside), f"{inside}: not a directory")


def test_an_id_that_is_none_is_refused(tmp_path: Path) -> None:
    assert run("init", tmp_path / "a", "--port", "1").returncode == 0
    for *words, name in (("runs", "show", ""), ("runs", "stop", ".."), ("devices", "show", "-p", "home", ".")):
        done = run(*words, name, "--state", tmp_path / "a")
        assert_refused(done, f"an id or a name was expected, got {name!r}")


class Other(http.server.BaseHTTPRequestHandler):
    """A server that is not Umbel's, and says what it was asked."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"hi")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def test_what_somebody_types_stays_one_name_and_another_server_is_named() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        done = run("runs", "show", "../devices?a#b\n", UMBEL_URL=url, UMBEL_TOKEN="token")
        assert_refused(done, "is it an Umbel server?")
        server.shutdown()
    assert Other.asked == ["/v1/runs/..%2Fdevices%3Fa%23b%0A"]
    assert_refused(run("runs", "list", UMBEL_URL=url, UMBEL_TOKEN="é"), "UMBEL_TOKEN")


@pytest.mark.parametrize("url", ["https://[::1", "https://a\N{LATIN SMALL LETTER U WITH DIAERESIS}..x", "https://\x01"])
def test_a_url_that_is_none_is_named(url: str) -> None:
    assert_refused(run("runs", "list", UMBEL_URL=url, UMBEL_TOKEN="token"), "address")


def test_another_server_is_named_with_a_token_or_not_at_all() -> None:
    assert_refused(run("runs", "list", UMBEL_URL="https://prod.example"), "UMBEL_TOKEN is not")
    assert_refused(run("runs", "list", UMBEL_TOKEN="token"), "UMBEL_URL is not")


def test_numbers_and_names_are_checked_before_anybody_is_asked(tmp_path: Path) -> None:
    assert run("init", tmp_path / "a", "--port", "1").returncode == 0
    here = ("--state", tmp_path / "a")
    for name in ("..", ""):
        refused = run("quota", "set", "-p", name, "--devices", "5", *here)
        assert_refused(refused, f"an id or a name was expected, got {name!r}")
    for ttl in ("nan", "inf", "0", "-1"):
        assert_refused(run("command", "send", "report", "-p", "home", "--ttl", ttl, *here), "--ttl", 2)
    assert_refused(run("command", "send", "report", "-p", "home", "--wait", "nan", *here), "--wait", 2)
    for port in ("99999", "-1"):
        assert_refused(run("broker", "config", "emqx", tmp_path / "b", "--port", port, *here), "--port", 2)
    assert not (tmp_path / "b").exists()


def test_a_server_that_is_not_running_is_named(tmp_path: Path) -> None:
    assert run("init", tmp_path / "a", "--port", "1").returncode == 0
    assert_refused(run("devices", "list", "--state", tmp_path / "a"), "is 'umbel serve' running?")


def test_compile_refuses_files_that_are_no_task(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert_refused(run("compile", tmp_path / "empty.py"), "no Task in this file")
    assert_refused(run("compile", tmp_path / "absent.py"), "no such task file")


def test_a_file_that_is_no_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / "some.plan").write_bytes(b"plan")
    assert run("init", tmp_path / "a", "--port", "1").returncode == 0
    done = run("runs", "start", tmp_path / "some.plan", "-p", "home", "--state", tmp_path / "a")
    assert_refused(done, f"{tmp_path / 'some.plan'}: not a plan made by 'umbel compile'")


def test_wrong_usage_exits_with_2() -> None:
    assert run("runs", "start").returncode == 2
    assert run("dance").returncode == 2
    assert agent().returncode == 2


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("--debug", "serve", "--state", tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_an_agent_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    example = agent("--example").stdout
    path = tmp_path / "agent.toml"
    token = "s." + "A" * 43
    good = example.replace("SECRET.FINGERPRINT", token)
    path.write_text(good)
    assert agent(path, "--check").returncode == 0
    for bad, sentence in (
        (example.replace("# enrolment_token", "enrolment_token"), "enrolment token"),
        (good.replace('kind = "phone"', 'kind = "toaster"'), "kind"),
        (good.replace('device = "phone-1"', 'device = "a/b"'), "device should be"),
        (good.replace("threads = 1", "threads = 0"), "threads"),
        (good.replace('server = "http', 'server = "ftp'), "http://"),
        (good.replace('trainer = "litert"', 'trainer = "keras"'), "task"),
        ("nonsense = 1\n" + good, "nonsense"),
        ("device = ", "agent.toml"),
    ):
        path.write_text(bad)
        assert_refused(agent(path), sentence, 2)
    assert_refused(agent(tmp_path / "absent.toml"), "no such configuration file", 2)
    assert os.listdir(tmp_path) == ["agent.toml"]
