"""What `umbel broker config mosquitto` writes starts as it is, also when root runs it."""

import getpass
import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import mosquitto_program
from tests.waiting import eventually
from umbel.mqtt import Link
from umbel_server.broker import mosquitto
from umbel_server.broker.files import Broker
from umbel_server.state_folder import Config, State, init_state
from umbel_sim.demo.processes import free_port

pytestmark = pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")


@pytest.fixture
def state(tmp_path: Path) -> State:
    return init_state(tmp_path / "state", Config())


@pytest.fixture(params=["reachable", "private"])
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A new folder that every user can reach, or one in a folder of the caller's own."""
    with tempfile.TemporaryDirectory(prefix="umbel-test-") as made:
        Path(made).chmod(0o755 if request.param == "reachable" else 0o700)
        yield Path(made) / "broker"


def test_mosquitto_starts_with_what_is_written(state: State, folder: Path) -> None:
    port = free_port()
    path = mosquitto.write_config(state, folder, Broker("127.0.0.1", port))
    program = mosquitto_program()
    assert program is not None
    process = subprocess.Popen([program, "-c", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    link = Link("127.0.0.1", port, "umbel-server", ("umbel/#",), lambda *_: None, tls=state.broker_context())
    link.start()
    assert eventually(lambda: link.is_up or process.poll() is not None)
    assert link.is_up
    link.stop()
    process.kill()
    process.communicate()


@pytest.mark.skipif(getpass.getuser() != "root", reason="only root gives files away")
def test_the_files_are_the_users_that_mosquitto_becomes(state: State, folder: Path) -> None:
    path = mosquitto.write_config(state, folder, Broker("127.0.0.1", 8883))
    is_reachable = bool(folder.parent.stat().st_mode & 0o001)
    user = mosquitto.USER if is_reachable and _exists(mosquitto.USER) else mosquitto.ROOT
    assert f"user {user}" in path.read_text().splitlines()
    assert {pwd.getpwuid(file.stat().st_uid).pw_name for file in folder.iterdir()} == {user}
    assert any("runs as root" in line for line in mosquitto.start_of(path)) == (user == mosquitto.ROOT)
    assert os.stat(folder / "broker-key.pem").st_mode & 0o077 == 0


def _exists(user: str) -> bool:
    return any(found.pw_name == user for found in pwd.getpwall())
