"""The number of devices enrolled in a second on one real server: invitations, keys, TLS, pinned trust and certificates.

Every device makes its own key and state folder, fetches the server's trust, enrols with a token for one use, and gets a
certificate, as `umbel-agent enrol` and the start of the agent do. `--threads` devices enrol at the same time, in one process
beside the server's.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from umbel.errors import UmbelError
from umbel_edge.config import AgentConfig
from umbel_edge.connection.certificate import Certificate
from umbel_edge.connection.enrolment import connect
from umbel_edge.connection.http import ServerHttp
from umbel_edge.connection.participation import Participation
from umbel_edge.device.state import AgentState
from umbel_server.cli.open_client import open_client
from umbel_server.client import Client
from umbel_server.state_folder import Config, Http, Mqtt, init_state
from umbel_sim.demo.processes import Processes, free_port, program

START_SECONDS = 60.0


def enrol(folder: Path, number: int, url: str, token: str) -> None:
    """Enrol one device, from a new state folder to its certificate."""
    state, stopping = AgentState(folder / f"device-{number}"), threading.Event()
    try:
        config = AgentConfig(
            f"device-{number}", "benchmark", "phone", url, Path("x.npz"), state.folder, enrolment_token=token
        )
        http = ServerHttp(config, state.key, stopping)
        connect(http, config, state, Participation(stopping, lambda: None))
        Certificate(state, http, time.time).context()
    finally:
        state.close()


def measure(folder: Path, devices: int, threads: int) -> dict[str, Any]:
    """Measure the seconds to invite and to enrol `devices` devices; raises UmbelError when one is not enrolled."""
    state = init_state(folder / "server", Config(http=Http(port=free_port()), mqtt=Mqtt(port=free_port())))
    with Processes(folder) as processes:
        processes.start("server", 0, program("umbel"), "serve", "--state", str(state.folder))
        client = open_client(state.folder)
        processes.until(lambda: _answers(client), START_SECONDS, "starting the server", "server")
        began = time.perf_counter()
        made = client.post("/v1/invitations", {"population": "benchmark", "count": devices})
        invited = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            numbers = range(devices)
            tokens = [invitation["token"] for invitation in made]
            list(pool.map(lambda n: enrol(folder, n, state.server_url, tokens[n]), numbers))
        ended = time.perf_counter()
        if (known := len(client.get("/v1/devices"))) != devices:
            raise UmbelError(f"{devices} devices should be enrolled, {known} are; read {processes.log('server')}")
    return {
        "devices": devices,
        "threads": threads,
        "invite_s": round(invited - began, 2),
        "enrol_s": round(ended - invited, 2),
        "devices_per_s": round(devices / (ended - invited), 1),
    }


def _answers(client: Client) -> bool:
    try:
        return bool(client.get("/v1/health")["ok"])
    except UmbelError:
        return False


def main() -> int:
    """Measure and print; the exit code is 1 when a device is not enrolled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=8)
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="umbel-enrolment-", ignore_cleanup_errors=True) as name:
        try:
            with console.status(f"{given.devices} devices enrol"):
                row = measure(Path(name), given.devices, given.threads)
        except UmbelError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    console.print(
        f"{row['devices']} devices enrolled in {row['enrol_s']} s ({row['devices_per_s']} a second); "
        f"their invitations took {row['invite_s']} s"
    )
    if given.json is not None:
        given.json.write_text(json.dumps(row, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
