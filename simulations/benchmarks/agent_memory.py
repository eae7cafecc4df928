"""Memory of an agent beside stock Flower's SuperNode and its SuperExec, all idle and without a model; then after training.

Real processes run on loopback, one half after the other. Memory is resident memory (proc_pid_status(5)), measured once it
is stable for some seconds. A node of stock Flower is its SuperNode and every process that it has started.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import tomli_w

from umbel.errors import UmbelError
from umbel.keras_import import import_keras
from umbel.task import load_task
from umbel_server.cli.open_client import open_client
from umbel_server.compiler import compile_task
from umbel_server.state_folder import Config, Enrolment, Http, Mqtt, init_state
from umbel_sim.demo.processes import Processes, free_port, program
from umbel_sim.digits import load_digits
from umbel_sim.stock_flower import StockFlower

DIGITS = Path(__file__).parent.parent / "umbel_sim" / "tasks" / "digits.py"
MOST_RATIO = 0.25
SECONDS, STEADY_SECONDS, STEADY_MB = 60.0, 5.0, 0.5


def tree_mb(program_name: str) -> float:
    """Resident memory of the processes below this one that run `program_name`, and of those that they have started."""
    found: dict[int, float] = {}
    for process in psutil.Process().children(recursive=True):
        if any(program_name in word for word in process.cmdline()[:3]):
            for one in (process, *process.children(recursive=True)):
                found[one.pid] = one.memory_info().rss / 1e6
    return sum(found.values())


def steady(measure: Callable[[], float]) -> float:
    """The result of `measure` once it is stable for STEADY_SECONDS; raises UmbelError when it is not within SECONDS."""
    deadline, since, last = time.monotonic() + SECONDS, time.monotonic(), measure()
    while time.monotonic() - since < STEADY_SECONDS or last == 0:
        if time.monotonic() > deadline:
            raise UmbelError(f"memory still changes after {SECONDS:.0f} s; it is {last:.1f} MB now")
        time.sleep(0.5)
        now = measure()
        if abs(now - last) > STEADY_MB:
            since, last = time.monotonic(), now
    return measure()


def stock_mb(folder: Path) -> float:
    """An idle SuperNode and its SuperExec."""
    with StockFlower(folder, [{}]):
        return steady(lambda: tree_mb("flower-supernode"))


def umbel_mb(folder: Path) -> tuple[float, float]:
    """An idle agent before it has seen a model, and after five rounds of the demo's network."""
    import_keras()
    plan = compile_task(load_task(DIGITS), folder / "digits.plan")
    mqtt_port = free_port()
    config = Config(http=Http(port=free_port()), mqtt=Mqtt(port=mqtt_port), enrolment=Enrolment(open=True))
    state = init_state(folder / "server", config)
    train, _ = load_digits(0.2, np.random.default_rng(0))
    np.savez(folder / "examples.npz", allow_pickle=False, x=train.x[:200], y=train.y[:200])
    agent = {"device": "device", "population": "benchmark", "kind": "gateway", "server": state.server_url}
    agent |= {"enrolment_token": state.enrolment_token, "examples": "examples.npz"}
    (folder / "agent.toml").write_text(tomli_w.dumps(agent))
    with Processes(folder) as processes:
        processes.start("server", 0, program("umbel"), "serve", "--state", str(state.folder))
        processes.start("agent", 1, program("umbel-agent"), str(folder / "agent.toml"))
        client = open_client(state.folder)

        def online() -> bool:
            try:
                return any(device["online"] for device in client.get("/v1/devices"))
            except UmbelError:
                return False

        processes.until(online, SECONDS, "starting an agent", "agent")
        before = steady(lambda: tree_mb("umbel-agent"))
        body = {
            "population": "benchmark",
            "plan": client.add_plan(plan.path).plan,
            "settings": {"rounds": 5, "epochs": 2},
        }
        id = client.post("/v1/runs", body)["id"]
        processes.until(lambda: client.get(f"/v1/runs/{id}")["state"] == "finished", SECONDS, "training", "server")
        return before, steady(lambda: tree_mb("umbel-agent"))


def main() -> int:
    """Measure both and print them; the exit code is 1 when a half fails, or the agent holds too much of the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="umbel-memory-", ignore_cleanup_errors=True) as name:
        folders = [Path(name) / half for half in ("umbel", "stock")]
        for folder in folders:
            folder.mkdir()
        try:
            (idle, trained), stock = umbel_mb(folders[0]), stock_mb(folders[1])
        except (UmbelError, subprocess.SubprocessError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    result = {"agent_mb": idle, "agent_trained_mb": trained, "stock_mb": stock, "ratio": idle / stock}
    print(f"an idle agent, before it has a model        {idle:6.1f} MB")
    print(f"an idle agent, after training               {trained:6.1f} MB")
    print(f"stock Flower: an idle SuperNode, SuperExec  {stock:6.1f} MB")
    print(f"ratio before there is a model               {result['ratio']:6.2f} (at most {MOST_RATIO})")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(result["ratio"] > MOST_RATIO)


if __name__ == "__main__":
    sys.exit(main())
