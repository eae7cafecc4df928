"""The real agent on ARM, with a server and an agent of this machine: it enrols, trains, installs, infers and exports."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.arm.roots import Root
from tests.running_agent import RunningAgent
from tests.server_harness import POPULATION, RunningServer, config_of
from tests.settled_commands import settled
from tests.waiting import eventually
from umbel import tensors
from umbel.litert import Predictor
from umbel.plan import Plan
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.runs.settings import RunSettings
from umbel_sim.demo.processes import free_port
from umbel_sim.digits import load_digits

PROGRAM = Path(__file__).parent / "programs" / "umbel_agent.py"
ROUNDS = 5
FILES = ("float32", "float16", "int8", "int8-full")

pytestmark = [pytest.mark.arm, pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningServer]:
    """A server with TLS for HTTP and MQTT."""
    server = RunningServer(tmp_path / "server", free_port(), tls=True)
    yield server
    server.stop()


@pytest.fixture
def here(running: RunningServer, tmp_path: Path) -> Iterator[RunningAgent]:
    """An agent of this machine with half of the examples."""
    config = config_of(running, tmp_path / "here")
    write_examples(config.examples, 0)
    agent = RunningAgent(msgspec.structs.replace(config, device="here"))
    yield agent
    agent.stop()


@pytest.fixture
def there(root: Root, running: RunningServer, tmp_path: Path) -> Iterator[str]:
    """The id of an agent that was enrolled with an invitation, and runs, on the ARM machine; the other half is its."""
    folder = tmp_path / "there"
    folder.mkdir()
    write_examples(folder / "examples.npz", 100)
    (invitation,) = running.client.post("/v1/invitations", {"population": POPULATION})
    words = ["--device", "there", "--kind", "gateway", "--config", str(folder / "agent.toml")]
    said = root.run(PROGRAM, "enrol", running.state.server_url, invitation["token"], *words)
    assert "there is enrolled in population test" in said
    log = folder / "agent.log"
    command = root.command(PROGRAM, folder / "agent.toml", "--log", log)
    process = subprocess.Popen(command, env=root.environment)
    try:
        yield "there"
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def write_examples(path: Path, start: int) -> None:
    train, _ = load_digits(0.2, np.random.default_rng(0))
    rows = slice(start, start + 100)
    np.savez(path, allow_pickle=False, x=train.x[rows], y=train.y[rows])


@pytest.mark.usefixtures("here")
def test_an_agent_enrols_trains_installs_infers_and_exports(
    root: Root, running: RunningServer, there: str, plan_of: Callable[[str], Plan], tmp_path: Path
) -> None:
    def ask(kind: str, **wanted: object) -> Any:
        asked = {"population": POPULATION, "devices": [there], "kind": kind, **wanted}
        (command,) = settled(running.client, running.client.post("/v1/commands", asked), 120)
        assert command["state"] == "done", command
        return command["outcome"]

    eventually(lambda: sum(device.online for device in running.server.devices.list(POPULATION)) == 2, 120)
    plan = running.server.plans.add(plan_of("digits").path)
    policy = RoundPolicy(target=2, quorum=2, deadline=120.0, attempts=1)
    id = running.server.runs.start(POPULATION, plan.sha256, RunSettings(rounds=ROUNDS, epochs=3, policy=policy)).id
    eventually(lambda: running.server.runs.get(id).state != "running", 300)
    run = running.client.get(f"/v1/runs/{id}")
    assert run["state"] == "finished", run["reason"]
    assert [made["contributors"] for made in run["checkpoints"] if made["round"]] == [2] * ROUNDS
    assert {a["device"]: a["state"] for a in run["assignments"]} == {"here": "folded", there: "folded"}

    x = load_digits(0.2, np.random.default_rng(0))[1].x[:64]
    np.savez(tmp_path / "representative.npz", allow_pickle=False, x=x)
    representative = running.client.put_blob((tmp_path / "representative.npz").read_bytes())
    wanted = {"variants": FILES, "representative": representative}
    release = running.client.post(f"/v1/runs/{id}/releases", wanted)["id"]
    for variant in FILES:
        ask("install", release=release, variant=variant)
        outcome = ask("infer", inputs=running.client.put_blob(tensors.dump({"x": x})))
        answer = tensors.load(running.client.get_blob(outcome["outputs"]["sha256"]))["output"]
        install = running.server.releases.install(release, variant)  # type: ignore[arg-type]
        expected = Predictor(running.server.blobs.get(install.model.sha256))({"x": x})["output"]
        off = 0.0 if (root.machine.name, variant) == ("aarch64", "int8-full") else 1e-5
        off = 0.004 if (root.machine.name, variant) == ("armv7l", "int8-full") else off
        assert float(np.abs(answer - expected).max()) <= off, variant

    exported = ask("export", plan=plan.sha256)
    personal = Predictor(running.client.get_blob(exported["model"]["sha256"]))({"x": x})["output"]
    assert personal.shape == (64, 10)
    assert np.isfinite(personal).all()
    report = ask("report")
    assert (report["rounds"], report["examples"], report["installed"]) == (ROUNDS, 100, release)
    assert report["imports"] == []
    assert report["rss_mb"] > 0
