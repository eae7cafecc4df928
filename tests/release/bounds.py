"""`make bounds`: installs the lowest, then the highest versions that pyproject.toml allows, and tries Umbel with them.

    python -m tests.release.bounds [lowest] [highest]

A server's environment (the extra sim) and a device's (umbel-edge) are made for each end. There a task is compiled, a
simulation and a few quick tests run, and an agent of the device's environment trains a run of the server's.
"""

import json
import sys
import tempfile
from pathlib import Path

from tests.release.environments import ROOT, Environment, Failed, Steps, tool
from umbel_sim.demo.processes import Processes, free_port

ENDS = {"lowest": "lowest-direct", "highest": "highest"}
TASKS = ROOT / "simulations/umbel_sim/tasks"
TESTS = (
    "tests/unit/shared",
    "tests/unit/sim/partitions",
    "tests/unit/server/storage",
    "tests/contract/edge/training/test_trainers.py",
)
SHOWN = (
    "ai-edge-litert",
    "cryptography",
    "flwr",
    "keras",
    "numpy",
    "paho-mqtt",
    "sqlalchemy",
    "tensorflow-cpu",
    "typer",
)
EXAMPLES = "import numpy as np; x = np.float32([[0], [1]]); np.savez('points.npz', x=x, y=2 * x - 1)"
SECONDS = 120.0


def main() -> None:
    """Try the ends that are asked for, both without a word; exit code 1 where something does not work."""
    ends = sys.argv[1:] or list(ENDS)
    if not set(ends) <= set(ENDS):
        sys.exit(f"make bounds: expected {' or '.join(ENDS)}, not {' '.join(ends)}")
    for end in ends:
        try:
            with tempfile.TemporaryDirectory() as name:
                try_end(end, Path(name))
        except Failed as error:
            sys.exit(f"make bounds: at the {end} versions: {error}")


def try_end(end: str, folder: Path) -> None:
    """Make the two environments of one end and use them; raises Failed."""
    steps = Steps()
    server = installed(end, "server", folder, ROOT, "--extra", "sim")
    device = installed(end, "device", folder, ROOT / "edge_client")
    steps.done(f"{end}: install")
    for environment in (server, device):
        versions = json.loads(tool("uv", "pip", "list", "--format", "json", "--python", environment.bin / "python"))
        shown = [f"{one['name']} {one['version']}" for one in versions if one["name"].replace("_", "-") in SHOWN]
        print(f"          {environment.name}: {', '.join(shown)}")
    plan = folder / "line.plan"
    server.run("umbel", "compile", TASKS / "line.py", "--output", plan)
    steps.done(f"{end}: compile a task")
    server.run("umbel", "simulate", TASKS / "digits.py", "--data", "digits", "--devices", "20", "--rounds", "3")
    steps.done(f"{end}: simulate")
    run_once(server, device, plan, folder)
    steps.done(f"{end}: a run of a server and a device")
    # numpy.testing of NumPy 1.26 starts lscpu when it is imported, which no unit test may: it is imported before them.
    server.run("python", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "numpy.testing", *TESTS, cwd=ROOT)
    steps.done(f"{end}: {len(TESTS)} groups of tests")


def installed(end: str, name: str, folder: Path, project: Path, *extra: str) -> Environment:
    """An environment with a project and the versions of one end of what it names; what those need is the newest."""
    requirements = folder / f"{name}.txt"
    resolution = ("--resolution", ENDS[end], "--python", sys.executable)
    tool(
        "uv",
        "pip",
        "compile",
        "--quiet",
        *resolution,
        *extra,
        project / "pyproject.toml",
        "--output-file",
        requirements,
    )
    environment = Environment(name, folder / name)
    environment.uv_install("-r", requirements, "pytest", "pytest-timeout", "hypothesis")
    environment.uv_install("--no-deps", project)
    return environment


def run_once(server: Environment, device: Environment, plan: Path, folder: Path) -> None:
    """Two rounds of a run, with TLS, the embedded broker and one agent; raises Failed when they do not finish."""
    state = folder / "server-state"
    ports = ("--port", str(free_port()), "--mqtt-port", str(free_port()))
    made = json.loads(server.run("umbel", "init", state, *ports, "--json"))
    device.run("python", "-c", EXAMPLES, cwd=folder)
    with Processes(folder) as processes:
        processes.start("serve", 1, str(server.bin / "umbel"), "serve", "--state", str(state))
        processes.until(
            lambda: "serving on" in processes.log("serve").read_text(), SECONDS, "the server's start", "serve"
        )
        token = server.run("umbel", "devices", "invite", "--population", "home", "--state", state, "--json")
        config = folder / "agent.toml"
        words = ("--device", "device-1", "--kind", "phone", "--examples", folder / "points.npz", "--config", config)
        device.run("umbel-agent", "enrol", made["server"], json.loads(token)[0]["token"], *words)
        processes.start("agent", 2, str(device.bin / "umbel-agent"), str(config))
        choices = ("--population", "home", "--rounds", "2", "--quorum", "1", "--state", state)
        server.run("umbel", "runs", "start", plan, *choices, "--watch", says="finished")


if __name__ == "__main__":
    main()
