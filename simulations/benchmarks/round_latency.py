"""The overhead of a round: no-op training of a 4 kB model on two nodes, on stock Flower and on Umbel's FleetGrid.

Both halves run real processes on loopback, one after the other. A round is timed from the end of the round before it
to its own end: on stock Flower inside the ServerApp, on Umbel by the times at which checkpoints were committed.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from rich.console import Console
from rich.table import Table

from umbel.errors import UmbelError
from umbel.keras_import import import_keras
from umbel.task import load_task
from umbel_server.cli.open_client import open_client
from umbel_server.client import Client
from umbel_server.compiler import compile_task
from umbel_server.state_folder import Config, Enrolment, Http, Mqtt, init_state
from umbel_sim.demo.processes import Processes, free_port, program
from umbel_sim.stock_flower import StockFlower

HERE = Path(__file__).parent
NOOP = HERE.parent / "umbel_sim" / "tasks" / "noop.py"
NODES = 2
START_SECONDS, ROUND_SECONDS = 60.0, 30.0


def stock_rounds(folder: Path, rounds: int) -> list[float]:
    """Seconds of each round of stock FedAvg on a SuperLink and two SuperNodes; raises UmbelError when it fails."""
    output = folder / "seconds.json"
    with StockFlower(folder, [{}] * NODES) as flower:
        config: dict[str, str | int | float | bool] = {"nodes": NODES, "rounds": rounds, "output": str(output)}
        log = flower.run(HERE / "stock_flower", config, START_SECONDS + ROUND_SECONDS * rounds)
    if not output.is_file():
        raise UmbelError(f"the stock Flower run wrote no result; its log ends: {log.strip()[-2000:]}")
    report = json.loads(output.read_bytes())
    if report["mean_weight"] != rounds:
        raise UmbelError(f"{rounds} rounds that add 1 should give weights of {rounds}, got {report['mean_weight']}")
    return [float(seconds) for seconds in report["seconds"]]


def umbel_rounds(folder: Path, rounds: int) -> list[float]:
    """Seconds of each round of FedAvg on a server and two agents; raises UmbelError when it fails."""
    import_keras()
    plan = compile_task(load_task(NOOP), folder / "noop.plan")
    mqtt_port = free_port()
    state = init_state(
        folder / "server",
        Config(http=Http(port=free_port()), mqtt=Mqtt(port=mqtt_port), enrolment=Enrolment(open=True)),
    )
    np.savez(folder / "examples.npz", x=np.zeros((1, 10), np.float32), y=np.zeros((1, 100), np.float32))
    with Processes(folder) as processes:
        processes.start("server", 0, program("umbel"), "serve", "--state", str(state.folder))
        for number in range(NODES):
            agent = {
                "device": f"device-{number}",
                "population": "benchmark",
                "kind": "gateway",
                "state": f"device-{number}",
                "server": state.server_url,
                "enrolment_token": state.enrolment_token,
                "examples": "examples.npz",
            }
            config = folder / f"device-{number}.toml"
            config.write_text(tomli_w.dumps(agent))
            processes.start(f"device-{number}", 1, program("umbel-agent"), str(config))
        client = open_client(state.folder)
        processes.until(lambda: _online(client) == NODES, START_SECONDS, "starting two agents", "server")
        settings = {"rounds": rounds, "policy": {"quorum": NODES, "deadline": ROUND_SECONDS}}
        body = {"population": "benchmark", "plan": client.add_plan(plan.path).plan, "settings": settings}
        id = client.post("/v1/runs", body)["id"]
        run: dict[str, Any] = {}

        def ended() -> bool:
            time.sleep(1.0)  # long, so that polling does not load the server
            run.update(client.get(f"/v1/runs/{id}"))
            return bool(run["state"] != "running")

        processes.until(ended, START_SECONDS + ROUND_SECONDS * rounds, "training", "server")
        if run["state"] != "finished":
            raise UmbelError(f"the run {run['state']}: {run['reason']}; read {processes.log('server')}")
    return [after["committed"] - before["committed"] for before, after in pairwise(run["checkpoints"])]


def _online(client: Client) -> int:
    try:
        return sum(bool(device["online"]) for device in client.get("/v1/devices"))
    except UmbelError:
        return 0


def main() -> int:
    """Measure both, print the medians and their ratio; the exit code is 1 when a half fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    console = Console()
    if arguments.rounds < 1:
        parser.error("--rounds should be at least 1")
    with tempfile.TemporaryDirectory(prefix="umbel-latency-", ignore_cleanup_errors=True) as name:
        folders = [Path(name) / half for half in ("umbel", "stock")]
        for folder in folders:
            folder.mkdir()
        try:
            with console.status("Umbel: a server, a broker and two agents"):
                umbel = umbel_rounds(folders[0], arguments.rounds)
            with console.status("stock Flower: a SuperLink and two SuperNodes"):
                stock = stock_rounds(folders[1], arguments.rounds)
        except UmbelError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    stock_s, umbel_s = statistics.median(stock), statistics.median(umbel)
    result = {"stock_s": stock_s, "umbel_s": umbel_s, "ratio": stock_s / umbel_s, "stock": stock, "umbel": umbel}
    table = Table(
        "", "median", "least", "most", title=f"one round, {NODES} nodes, 4 kB model, {arguments.rounds} rounds"
    )
    for label, seconds in (("stock Flower", stock), ("Umbel", umbel)):
        times = (statistics.median(seconds), min(seconds), max(seconds))
        table.add_row(label, *(f"{time * 1000:,.0f} ms" for time in times))
    console.print(table)
    console.print(f"Umbel is {result['ratio']:.0f} times faster")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
