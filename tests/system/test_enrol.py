"""`umbel-agent enrol`, then a training round, then the end: real programs and a server that takes invitations only."""

import os
import stat
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.contract.server.runs.test_fleet_grid import start
from tests.server_harness import POPULATION, RunningServer, serving
from tests.tokens import PIN, SOFTHSM, SoftHsm, needs_softhsm
from tests.waiting import eventually
from umbel.plan import Plan
from umbel_sim.demo.processes import free_port, program

X = np.float32([[-1], [0], [1], [2], [3], [4]])


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningServer]:
    with serving(tmp_path / "server", open_enrolment=False) as server:
        yield server


def token(running: RunningServer) -> str:
    (made,) = running.client.post("/v1/invitations", {"population": POPULATION, "labels": {"site": "lab"}})
    return str(made["token"])


def agent(*words: str | Path, code: int = 0) -> str:
    command = [program("umbel-agent"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    assert done.returncode == code, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) <= 1
    return done.stdout + done.stderr


def test_a_device_is_enrolled_trains_and_is_revoked(
    running: RunningServer, plan_of: Callable[[str], Plan], tmp_path: Path
) -> None:
    folder, spent = tmp_path / "phone", token(running)
    folder.mkdir()
    np.savez(tmp_path / "points.npz", x=X, y=2 * X - 1)
    path = folder / "agent.toml"
    asked = ("enrol", running.state.server_url, spent, "--kind", "phone", "--config", path)
    assert f"umbel-agent {path}" in agent(*asked, "--examples", tmp_path / "points.npz")
    written = tomllib.loads(path.read_text())
    assert (written["population"], written["kind"]) == (POPULATION, "phone")
    assert spent.partition(".")[0] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "there is a configuration file already" in agent(*asked, code=1)
    again = agent(*asked, "--examples", tmp_path / "points.npz")  # it was broken off when all was written
    assert f"{written['device']} is enrolled" in again
    assert "already" in agent(*asked, "--examples", tmp_path / "points.npz", "--device", "other", code=1)
    path.unlink()  # as if it had been broken off before the configuration was written
    agent(*asked, "--examples", tmp_path / "points.npz")
    assert tomllib.loads(path.read_text()) == written
    assert len(running.client.get("/v1/devices")) == 1

    log = (folder / "log").open("wb")
    process = subprocess.Popen([program("umbel-agent"), str(path)], stderr=log, env=os.environ)
    try:
        running.wait_online(1)
        plan = running.server.plans.add(plan_of("line").path)
        id = start(running, plan, {"quorum": 1, "deadline": 30.0, "labels": {"site": "lab"}})
        eventually(lambda: running.server.runs.get(id).state == "finished", 40)
        running.client.post(f"/v1/devices/{POPULATION}/{written['device']}/revoke", {"reason": "it was sold"})
        assert process.wait(20) == 1
    finally:
        process.kill()
        process.wait()
        log.close()
    assert (folder / "log").read_text().splitlines()[-1] == (
        f"umbel-agent: device {written['device']} of {POPULATION} is revoked (it was sold): that is for good"
    )
    assert "is revoked (it was sold)" in agent(path, code=1).splitlines()[-1]


@needs_softhsm
def test_a_device_is_enrolled_with_a_key_on_a_token(
    running: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOFTHSM2_CONF", raising=False)
    hsm = SoftHsm(tmp_path, "phones")
    path, pin = tmp_path / "phone" / "agent.toml", tmp_path / "phones.pin"
    asked = ("enrol", running.state.server_url, token(running), "--kind", "phone", "--config", path)
    on_token = ("--key-store", "pkcs11", "--module", SOFTHSM, "--token-label", "phones", "--key-name", "one")
    assert "either pin_file or pin_env" in agent(*asked, *on_token, code=1)
    hsm.write_pin("not the PIN")
    assert "token 'phones' refuses the PIN" in agent(*asked, *on_token, "--pin-file", pin, code=1)
    assert not path.exists()
    hsm.write_pin(PIN)
    agent(*asked, *on_token, "--pin-file", pin)
    written = tomllib.loads(path.read_text())
    assert written["key"] == {
        "store": "pkcs11",
        "module": str(SOFTHSM),
        "token": "phones",
        "name": "one",
        "pin_file": "../phones.pin",
    }
    assert PIN not in path.read_text()
    assert not (path.parent / "state" / "key.pem").exists()
    np.savez(path.parent / "examples.npz", x=X, y=2 * X - 1)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program("umbel-agent"), str(path)], stderr=log, env=os.environ)
        try:
            running.wait_online(1)
        finally:
            process.terminate()
            assert process.wait(20) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
    hsm.write_pin("changed")
    assert agent(path, code=1).endswith("umbel-agent: token 'phones' refuses the PIN; correct it\n")


def test_what_cannot_enrol_says_so_in_a_line_and_leaves_no_configuration(
    running: RunningServer, tmp_path: Path
) -> None:
    url, good = running.state.server_url, token(running)
    secret, _, pin = good.partition(".")
    path = tmp_path / "phone" / "agent.toml"
    kind = ("--kind", "phone", "--config", path)
    for words, sentence in (
        ((url, "nonsense", *kind), "expected an enrolment token"),
        ((url.removeprefix("http://"), good, *kind), "begin with http://"),
        ((url, f"{secret}x.{pin}", *kind), "not this server's"),
        ((url, good, "--config", path), "neither the device nor its invitation"),
        ((url, good, *kind, "--device", "a/b"), "a device id should be"),
    ):
        assert sentence in agent("enrol", *words, code=1)
        assert not path.exists()
    assert "expected one argument" in agent_usage("enrol", url, good, "--kind")
    agent("enrol", url, good, *kind, "--device", "device-2", code=1)  # the key is another's already
    assert "give the enrolment token too" in agent_usage("enrol", url)
    agent("enrol", f"umbel:{url}#{good}", *kind)
    assert "not enrolled" in agent(_without_enrolment(path, tmp_path), code=1)


def test_a_place_that_cannot_be_used_is_named_in_a_line(running: RunningServer, tmp_path: Path) -> None:
    asked = ("enrol", running.state.server_url, token(running), "--kind", "phone", "--config")
    path, file = tmp_path / "phone" / "agent.toml", tmp_path / "file"
    file.touch()
    for lies in ("lock", "trust.json"):
        (tmp_path / lies / "state" / lies).mkdir(parents=True)
        (tmp_path / lies / "state" / "lock").touch()
    for place, sentence in (
        (file / "agent.toml", "not a directory"),
        (tmp_path / ("x" * 300) / "agent.toml", "file name too long"),
        (tmp_path / "lock" / "agent.toml", "lock: is a directory"),
        (tmp_path / "trust.json" / "agent.toml", "trust.json: is a directory"),
        (file / "a\nb\x1b[2J" / "agent.toml", r"a\nb\x1b[2J"),
    ):
        assert sentence in agent(*asked, place, code=1)
    agent(*asked, path)
    for log in (tmp_path, tmp_path / "none" / "log"):
        assert f"umbel-agent: {log}: " in agent(path, "--log", log, code=1)


def test_a_server_with_another_key_than_the_tokens_is_not_trusted(running: RunningServer, tmp_path: Path) -> None:
    secret, _, pin = token(running).partition(".")
    words = ("--kind", "phone", "--config", tmp_path / "phone" / "agent.toml")
    other = ("A" if pin[0] != "A" else "B") + pin[1:]
    assert "another server" in agent("enrol", running.state.server_url, f"{secret}.{other}", *words, code=1)
    assert not (tmp_path / "phone" / "state" / "server-key.json").exists()


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    words = (f"http://127.0.0.1:{free_port()}", "u" * 44 + "." + "A" * 43, "--kind", "phone")
    done = subprocess.run(
        [program("umbel-agent"), "enrol", *words, "--config", str(tmp_path / "agent.toml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 1
    assert "does not answer" in done.stderr.splitlines()[-1]


def agent_usage(*words: str) -> str:
    command = [program("umbel-agent"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    assert done.returncode == 2
    return done.stderr


def _without_enrolment(path: Path, folder: Path) -> Path:
    """The same configuration beside an empty state folder."""
    other = folder / "new" / "agent.toml"
    other.parent.mkdir()
    other.write_text(path.read_text())
    return other
