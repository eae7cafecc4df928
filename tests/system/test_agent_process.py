"""A live agent process: what it weighs, and that it stops when it is told to."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tomli_w

from tests.brokers import EmbeddedProcess, Mosquitto
from tests.server_harness import POPULATION, RunningServer
from tests.settled_commands import settled
from tests.waiting import eventually
from umbel.plan import Plan
from umbel_server.runs.settings import RunSettings
from umbel_sim.demo.processes import program
from umbel_sim.digits import load_digits


@pytest.fixture
def running(tmp_path: Path, broker: EmbeddedProcess | Mosquitto) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path / "server", broker.port)
    yield server
    server.stop()


@pytest.fixture
def agent(running: RunningServer, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    train, _ = load_digits(0.2, np.random.default_rng(0))
    np.savez(tmp_path / "examples.npz", allow_pickle=False, x=train.x[:200], y=train.y[:200])
    config = {
        "device": "phone",
        "population": POPULATION,
        "kind": "phone",
        "server": running.state.server_url,
        "enrolment_token": running.state.enrolment_token,
        "examples": "examples.npz",
    }
    (tmp_path / "agent.toml").write_text(tomli_w.dumps(config))
    process = subprocess.Popen([program("umbel-agent"), str(tmp_path / "agent.toml"), "--log", str(tmp_path / "log")])
    running.wait_online(1)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
def test_an_agent_is_light_after_training_and_has_loaded_neither_tensorflow_nor_flower(
    running: RunningServer, agent: subprocess.Popen[bytes], plan_of: Callable[[str], Plan]
) -> None:
    plan = running.server.plans.add(plan_of("digits").path)
    id = running.server.runs.start(POPULATION, plan.sha256, RunSettings(rounds=5, epochs=2)).id
    eventually(lambda: running.server.runs.get(id).state == "finished", 60)
    commands = running.client.post("/v1/commands", {"population": POPULATION, "kind": "report"})
    (command,) = settled(running.client, commands, 20)
    assert command["outcome"]["imports"] == []
    assert command["outcome"]["rounds"] == 5
    mapped = {m.path for m in psutil.Process(agent.pid).memory_maps()}
    assert not any("/tensorflow/" in path or "/flwr/" in path or "/grpc/" in path for path in mapped)
    litert = resident_mb_of_litert()
    assert memory_mb(agent.pid, "VmHWM") - litert <= 80 - 33
    eventually(lambda: memory_mb(agent.pid, "VmRSS") - litert <= 53 - 33)


def memory_mb(process: int, name: str) -> float:
    """A figure of proc_pid_status(5): VmRSS is resident now, VmHWM was the most."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024 / 1e6


def resident_mb_of_litert() -> float:
    """What LiteRT and NumPy alone hold here: 33 MB where the kernel maps few pages around one that is used, more elsewhere."""
    code = "import ai_edge_litert.interpreter; print(open('/proc/self/statm').read().split()[1])"
    pages = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return int(pages) * resource.getpagesize() / 1e6


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
def test_an_agent_stops_cleanly_also_while_it_trains(
    running: RunningServer, agent: subprocess.Popen[bytes], plan_of: Callable[[str], Plan]
) -> None:
    plan = running.server.plans.add(plan_of("digits").path)
    id = running.server.runs.start(POPULATION, plan.sha256, RunSettings(rounds=1, epochs=100_000)).id
    eventually(lambda: any(a["state"] == "accepted" for a in running.client.get(f"/v1/runs/{id}")["assignments"]))
    agent.terminate()
    assert agent.wait(8) == 0
    running.wait_online(0)
    assert running.server.runs.stop(id).state == "stopped"


def test_a_killed_agent_counts_as_offline_by_its_last_will(
    running: RunningServer, agent: subprocess.Popen[bytes]
) -> None:
    agent.kill()
    running.wait_online(0)
