"""The duration of a round with many devices, until its checkpoint is committed, and the share of each part.

The server and the broker are real. The devices are light ones that speak the real protocol from one process: they download
the weights, do not train, and upload an update of the same size. A round is timed from its opening to its commit.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from umbel.errors import UmbelError
from umbel.plan import INITIAL, SCHEMA, Manifest, Plan
from umbel.tensors import TensorSpec, WeightSpec, dump
from umbel_server.cli.open_client import open_client
from umbel_server.client import Client
from umbel_server.state_folder import Config, Enrolment, Http, Mqtt, init_state
from umbel_sim.demo.processes import Processes, free_port, program

START_SECONDS, ROUND_SECONDS = 120.0, 60.0
SERVER_PARTS = ("publish", "read", "vet", "fold", "aggregate", "commit")


def weights_plan(path: Path, megabytes: float) -> Plan:
    """A plan with `megabytes` (10^6 bytes) of float32 weights and no model, because the light devices do not train."""
    shape = (round(megabytes * 1e6 / 4 / 100), 100)
    manifest = Manifest(
        schema=SCHEMA,
        task="weights",
        batch_size=1,
        learning_rate=0.1,
        loss="mse",
        optimizer="sgd",
        metrics=(),
        inputs={"x": TensorSpec((1,))},
        targets={"y": TensorSpec((1,))},
        outputs={"output": TensorSpec((1,))},
        weights=(WeightSpec("kernel", shape),),
        weight_maps={},
        parity={},
        producer={},
        files={},
    )
    return Plan.write(path, manifest, {INITIAL: dump({"kernel": np.zeros(shape, np.float32)})})


def measure(folder: Path, devices: int, rounds: int, megabytes: float) -> dict[str, Any]:
    """Measure the seconds of each round and of its parts.

    Raises UmbelError when the server or the devices do not start, or a round fails.
    """
    state = init_state(
        folder / "server",
        Config(http=Http(port=free_port()), mqtt=Mqtt(port=free_port()), enrolment=Enrolment(open=True)),
    )
    swarm = folder / "swarm.json"
    with Processes(folder) as processes:
        processes.start("server", 0, program("umbel"), "serve", "--state", str(state.folder))
        client = open_client(state.folder)
        processes.until(lambda: _answers(client), START_SECONDS, "starting the server", "server")
        arguments = ("--count", str(devices), "--folder", str(folder / "swarm"), "--json", str(swarm))
        processes.start(
            "swarm",
            1,
            sys.executable,
            "-m",
            "umbel_sim.swarm",
            "--server",
            state.server_url,
            "--token",
            state.enrolment_token,
            *arguments,
        )
        processes.until(lambda: _online(client) == devices, START_SECONDS, f"{devices} devices", "swarm")
        plan = weights_plan(folder / "weights.plan", megabytes)
        settings = {
            "rounds": rounds,
            "policy": {"quorum": devices, "over_selection": 1.0, "deadline": ROUND_SECONDS},
        }
        body = {"population": "swarm", "plan": client.add_plan(plan.path).plan, "settings": settings}
        id = client.post("/v1/runs", body)["id"]
        run: dict[str, Any] = {}

        def ended() -> bool:
            run.update(client.get(f"/v1/runs/{id}"))
            return bool(run["state"] != "running")

        deadline = time.monotonic() + ROUND_SECONDS * rounds
        while not ended() and time.monotonic() < deadline:
            processes.check()
            time.sleep(1.0)  # long, so that polling does not load the server
        if run["state"] != "finished":
            raise UmbelError(f"the run is {run['state']}: {run['reason']}; read {processes.log('server')}")
        attempts = [client.get(f"/v1/runs/{id}", round=number)["attempts"][-1] for number in range(1, rounds + 1)]
    seen = json.loads(swarm.read_bytes())
    return {
        "devices": devices,
        "megabytes": megabytes,
        "rounds": [attempt["closed"] - attempt["opened"] for attempt in attempts],
        "server": {part: statistics.median(a["seconds"].get(part, 0.0) for a in attempts) for part in SERVER_PARTS},
        "device": {what: statistics.median(seconds) for what, seconds in seen.items()},
    }


def _answers(client: Client) -> bool:
    try:
        return bool(client.get("/v1/health")["broker"])
    except UmbelError:
        return False


def _online(client: Client) -> int:
    time.sleep(0.3)
    return sum(bool(device["online"]) for device in client.get("/v1/devices"))


def main() -> int:
    """Measure and print; the exit code is 1 when a round fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=1.0, help="size of the model in MB")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="umbel-fleet-", ignore_cleanup_errors=True) as name:
        try:
            with console.status(f"a server, a broker and {arguments.devices} light devices"):
                result = measure(Path(name), arguments.devices, arguments.rounds, arguments.megabytes)
        except UmbelError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    table = Table("", "seconds", title=f"a round with {arguments.devices} devices, {arguments.megabytes:g} MB model")
    table.add_row("median round", f"{statistics.median(result['rounds']):.2f}")
    table.add_row("slowest round", f"{max(result['rounds']):.2f}")
    for what, seconds in result["device"].items():
        table.add_row(f"{what}, one device's median", f"{seconds:.3f}")
    for part, seconds in result["server"].items():
        table.add_row(f"server: {part}, whole round", f"{seconds:.3f}")
    console.print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
