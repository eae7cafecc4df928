"""The operator's commands, as programs, against a running server and its devices."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.compiled_plans import TASKS
from tests.running_agent import RunningAgent
from tests.server_harness import POPULATION, RunningServer, ScriptedDevice, X, config_of, serving
from tests.umbel_command import Umbel
from umbel import tensors
from umbel.keras_import import import_keras
from umbel.litert import Predictor
from umbel.messages import Ack
from umbel.plan import Plan
from umbel_server.storage.database import Device


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningServer]:
    with serving(tmp_path / "server") as server:
        agent = RunningAgent(config_of(server, tmp_path / "phone"))
        server.wait_online(1)
        yield server
        agent.stop()


@pytest.fixture
def umbel(tmp_path: Path) -> Umbel:
    return Umbel(tmp_path / "server", columns=160)


def test_an_operator_trains_looks_ships_and_asks(
    running: RunningServer, umbel: Umbel, plan_of: Callable[[str], Plan], tmp_path: Path
) -> None:
    data = umbel.json
    np.savez(tmp_path / "test.npz", x=X, y=2 * X - 1)
    assert [d["id"] for d in data("devices", "list")] == ["phone"]
    assert "phone" in umbel("devices", "show", "phone", "-p", POPULATION)
    assert "eligible" in umbel("devices", "list")
    with running.server.database.transaction() as session:
        session.get_one(Device, (POPULATION, "phone")).reasons = ["battery 0.12 < 0.3", "not charging"]
    assert "battery 0.12 < 0.3, not charging" in umbel("devices", "show", "phone", "-p", POPULATION)
    assert "battery" in umbel("devices", "list")
    with running.server.database.transaction() as session:
        session.get_one(Device, (POPULATION, "phone")).reasons = []
    train = ("runs", "start", plan_of("line").path, "-p", POPULATION, "--rounds", "30")
    assert "finished" in umbel(
        *train, "--held-out", tmp_path / "test.npz", "--strategy", "fedavgm", "-o", "server_momentum=0.1", "--watch"
    )
    (run,) = data("runs", "list")
    assert (run["state"], run["round"], run["strategy"]) == ("finished", 30, "fedavgm")
    shown = data("runs", "show", run["id"][:6], "--round", "3")
    assert [a["round"] for a in shown["assignments"]] == [3]
    losses = [c["metrics"]["loss"] for c in shown["checkpoints"]]
    assert losses[-1] < losses[0] / 10
    for words in (("runs", "list"), ("runs", "show", "latest"), ("runs", "watch", "latest"), ("releases", "list")):
        assert umbel(*words)
    file = tmp_path / "trained.safetensors"
    assert data("runs", "checkpoint", "download", "latest", "--round", "3", "-o", file)["file"] == str(file)
    digests = {checkpoint["round"]: checkpoint["weights"] for checkpoint in shown["checkpoints"]}
    assert tensors.digest(file.read_bytes()) == digests[3]
    download = ("runs", "checkpoint", "download", "latest")
    assert "no checkpoint of round 31" in umbel(*download, "--round", "31", code=1)
    assert "give --task" in umbel(*download, "-o", tmp_path / "x.keras", code=1)
    assert "ends in .keras" in umbel(*download, "-o", file, "--task", TASKS / "line.py", code=1)
    assert "give --task" in umbel("releases", "export", "latest", "--keras", tmp_path / "x.keras", code=1)
    release = data("releases", "export", "latest", "--output", tmp_path / "out")
    assert [r["id"] for r in data("releases", "list")] == [release["id"]]
    assert sorted(release["files"]) == ["float16", "float32", "int8"]
    np.savez(tmp_path / "ask.npz", x=X)
    shown = umbel("releases", "show", release["id"])
    assert release["id"] in shown
    assert "Keras" not in shown
    for words in (("--variant", "int8-full"), ("--task", tmp_path / "none.py"), ("--examples", tmp_path / "none.npz")):
        umbel("releases", "export", "latest", *words, code=1)
    assert len(data("releases", "list")) == 1
    send = ("command", "send")
    for_all = ("-p", POPULATION)
    assert data(*send, "install", *for_all, "--release", release["id"], "--variant", "int8")[0]["state"] == "done"
    assert data(*send, "infer", *for_all, "--inputs", tmp_path / "test.npz", code=1)[0]["state"] == "rejected"
    data(*send, "infer", *for_all, "--inputs", tmp_path / "ask.npz", "--save", tmp_path / "answers")
    with np.load(tmp_path / "answers" / "phone.npz") as answers:
        assert answers["output"].shape == (6, 1)
    export = (*send, "export", *for_all, "--run", "latest", "--save", tmp_path / "personal")
    assert data(*export, "--variant", "int8")[0]["outcome"]["variant"] == "int8"
    umbel(*export, "--variant", "float16", code=1)
    assert "done" in umbel(*export)
    model = (tmp_path / "personal" / "phone.tflite").read_bytes()
    assert Predictor(model)({"x": X})["output"].shape == (6, 1)
    assert data(*send, "report", *for_all, "-d", "phone")[0]["outcome"]["installed"] == release["id"]
    assert data("runs", "stop", "latest")["state"] == "finished"
    umbel("runs", "show", "nothing", code=1)
    umbel("runs", "start", plan_of("line").path, "-p", POPULATION, "--strategy", "fedmagic", code=1)
    umbel("runs", "start", plan_of("line").path, "-p", POPULATION, "--until", "better", code=2)


@pytest.mark.long
def test_an_operator_measures_the_files_of_a_release(
    running: RunningServer, umbel: Umbel, plan_of: Callable[[str], Plan], tmp_path: Path
) -> None:
    np.savez(tmp_path / "ask.npz", x=X)
    np.savez(tmp_path / "test.npz", x=X, y=2 * X - 1)
    train = ("runs", "start", plan_of("line").path, "-p", POPULATION, "--rounds", "30")
    umbel(*train, "--held-out", tmp_path / "test.npz", "--strategy", "fedavgm", "-o", "server_momentum=0.1", "--watch")
    table = umbel(
        *("releases", "export", "latest", "--variant", "float32", "--representative", tmp_path / "ask.npz"),
        *("--task", TASKS / "line.py", "--output", tmp_path / "full", "--keras", tmp_path / "line.keras"),
    )
    rows = [line.split()[0] for line in table.splitlines() if line]
    assert rows[:7] == ["release", "model", "Keras", "plan", "float32", "int8-full", "Measured"]
    assert "loss" in table
    full = next((tmp_path / "full").glob("*.int8-full.tflite")).read_bytes()
    assert np.allclose(Predictor(full)({"x": X})["output"], 2 * X - 1, atol=0.5)
    download = ("runs", "checkpoint", "download", "latest", "--task", TASKS / "line.py", "-o", tmp_path / "again.keras")
    assert "round 30 of run" in umbel(*download)
    import_keras()
    import keras

    weights = [keras.saving.load_model(tmp_path / name).get_weights() for name in ("line.keras", "again.keras")]
    kernel, bias = (value.item() for value in weights[0])
    assert (kernel, bias) == (pytest.approx(2, abs=0.1), pytest.approx(-1, abs=0.1))
    assert [value.item() for value in weights[1]] == [kernel, bias]


def test_what_devices_say_is_shown_and_obeyed_by_no_terminal(tmp_path: Path) -> None:
    command, draws = Umbel(tmp_path / "server"), "\x1b[2J[/nothing]"
    with serving(tmp_path / "server") as running:

        def umbel(*words: str, code: int = 0) -> str:
            shown = command(*words, code=code)
            assert "\x1b" not in shown
            return shown

        scripted = ScriptedDevice(
            running, "phone", lambda c: Ack(c.id, c.population, "phone", "declined", 0.0, f"busy {draws}")
        )
        running.wait_online(1)
        with running.server.database.transaction() as session:
            device = session.get_one(Device, (POPULATION, "phone"))
            device.trainer = device.agent = device.name = device.installed = draws
            device.labels, device.reasons = {"site": draws}, [draws]
        shown = r"\x1b[2J[/nothing]"
        assert shown in umbel("devices", "list")
        assert f"busy {shown}" in umbel("command", "send", "report", "-p", POPULATION, code=1)
        assert umbel("devices", "show", "phone", "-p", POPULATION).count(shown) >= 6
        umbel("devices", "label", "phone", "a=[/b]", "-p", POPULATION)
        umbel("devices", "invite", "-p", POPULATION, "--label", "a=[/b]")
        assert "a=[/b]" in umbel("devices", "invitations")
        scripted.stop()
