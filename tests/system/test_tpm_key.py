"""A key in a TPM 2.0, through its PKCS#11 module: enrolled, trained with twice, by programs and a TPM in a process."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.contract.server.runs.test_fleet_grid import ended, start
from tests.server_harness import RunningServer
from tests.system.test_enrol import X, agent, token
from tests.tokens import PIN, TPM, SoftTpm, needs_tpm
from umbel.plan import Plan
from umbel_sim.demo.processes import free_port, program

pytestmark = needs_tpm


@pytest.fixture
def tpm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftTpm]:
    made = SoftTpm("umbel")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    made.stop()


@contextmanager
def started(path: Path, log: Path) -> Iterator[None]:
    with log.open("wb") as stream:
        process = subprocess.Popen([program("umbel-agent"), str(path)], stderr=stream, env=os.environ)
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(20) == 0
    assert "Traceback" not in log.read_text()


def test_a_device_trains_with_its_key_in_a_tpm(tpm: SoftTpm, tmp_path: Path, plan_of: Callable[[str], Plan]) -> None:
    running = RunningServer(tmp_path / "server", free_port(), tls=True, open_enrolment=False)
    pin, path = tmp_path / "pin", tmp_path / "phone" / "agent.toml"
    pin.touch(mode=0o600)
    pin.write_text(PIN)
    np.savez(tmp_path / "points.npz", x=X, y=2 * X - 1)
    in_tpm = ("--key-store", "pkcs11", "--module", TPM, "--token-label", "umbel", "--pin-file", pin)
    asked = ("enrol", running.state.server_url, token(running), "--kind", "phone", "--config", path)
    agent(*asked, *in_tpm, "--examples", tmp_path / "points.npz")
    plan = running.server.plans.add(plan_of("line").path)
    for run in ("first", "after a restart"):
        tpm.flush()
        with started(path, tmp_path / run):
            running.wait_online(1)
            shown = ended(running, start(running, plan, {"quorum": 1, "deadline": 60.0}))
            assert shown["state"] == "finished", shown
        running.wait_online(0)
    assert not (path.parent / "state" / "key.pem").exists()
    running.stop()
