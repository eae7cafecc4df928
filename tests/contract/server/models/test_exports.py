"""Releases and personalised files through a real server and a real agent, against TFLite's converter and Keras."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.brokers import EmbeddedProcess
from tests.compiled_plans import TASKS
from tests.running_agent import RunningAgent
from tests.server_harness import POPULATION, RunningServer, config_of
from tests.settled_commands import settled
from tests.waiting import eventually
from umbel import release, tensors
from umbel.errors import UmbelError
from umbel.keras_import import import_keras
from umbel.litert import Predictor
from umbel.plan import Plan
from umbel.task import load_task
from umbel.tensors import Tensors
from umbel_server.runs.settings import RunSettings
from umbel_server.storage.database import Release
from umbel_sim.digits import Digits, load_digits

ALL = ["float32", "float16", "int8", "int8-full"]


class Trained:
    """A server and a real agent that has trained digits for two rounds, with digits held out."""

    def __init__(self, running: RunningServer, folder: Path, plan: Plan) -> None:
        self.running, self.client = running, running.client
        self.train, self.held_out = load_digits(0.2, np.random.default_rng(0))
        self.config = config_of(running, folder)
        np.savez(self.config.examples, allow_pickle=False, x=self.train.x[:300], y=self.train.y[:300])
        self.agent = RunningAgent(self.config)
        running.wait_online(1)
        self.plan = running.server.plans.add(plan.path)
        settings = {"rounds": 2, "epochs": 4, "held_out": self.put(self.held_out.x, self.held_out.y)}
        self.run = running.server.runs.start(POPULATION, self.plan.sha256, msgspec.convert(settings, RunSettings)).id
        eventually(lambda: running.server.runs.get(self.run).state == "finished", 60)

    def put(self, x: Any, y: Any = None) -> str:
        path = self.config.state.parent / "some.npz"
        np.savez(path, allow_pickle=False, x=x, **({} if y is None else {"y": y}))
        return self.client.put_blob(path.read_bytes())

    def export(self, **wanted: Any) -> dict[str, Any]:
        return dict(self.client.post(f"/v1/runs/{self.run}/releases", wanted, 120))

    def ask(self, kind: str, **wanted: Any) -> dict[str, Any]:
        commands = self.client.post("/v1/commands", {"population": POPULATION, "kind": kind, **wanted})
        return dict(settled(self.client, commands, 20)[0])

    def kept(self) -> tuple[int, int]:
        """How many releases and blobs the server holds."""
        blobs = [path for path in (self.running.state.folder / "blobs").rglob("*") if path.is_file()]
        return len(self.running.server.releases.list()), len(blobs)


@pytest.fixture(scope="module")
def trained(plan_of: Callable[[str], Plan], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("exports")
    broker = EmbeddedProcess()
    broker.start()
    running = RunningServer(folder / "server", broker.port)
    made = Trained(running, folder / "phone", plan_of("digits"))
    yield made
    made.agent.stop()
    running.stop()
    broker.stop()


@pytest.fixture(scope="module")
def exported(trained: Trained) -> dict[str, Any]:
    return trained.export(variants=ALL, representative=trained.put(trained.train.x[:100]))


def accuracy(outputs: Tensors, digits: Digits) -> float:
    return float(np.mean(outputs["output"].argmax(axis=1) == digits.y))


def test_every_file_is_measured_beside_the_plan_and_keras(trained: Trained, exported: dict[str, Any]) -> None:
    import_keras()
    from umbel.examples import Examples
    from umbel_server.compiler.keras_eval import evaluate

    weights = tensors.load(trained.client.get_blob(trained.running.server.runs.checkpoint(trained.run).weights))
    held = trained.held_out
    keras = evaluate(load_task(TASKS / "digits.py"), weights, Examples({"x": held.x, "y": held.y}, len(held.y)))
    assert list(exported["files"]) == ALL
    parity = exported["parity"]
    assert parity["rows"] == f"{len(held.y)} held-out"
    assert "litert" in parity["machine"]
    assert parity["plan"] == pytest.approx(keras, rel=1e-5)
    for variant, close in (("float32", 1e-5), ("float16", 1e-3), ("int8", 0.05), ("int8-full", 0.05)):
        file = exported["files"][variant]
        model = trained.client.get_blob(file["sha256"])
        outputs = Predictor(model)({"x": held.x})
        assert file["size"] == len(model)
        assert file["metrics"].keys() == keras.keys()
        assert file["metrics"]["accuracy"] == pytest.approx(accuracy(outputs, held))
        assert file["metrics"]["accuracy"] == pytest.approx(keras["accuracy"], abs=close)
        assert file["metrics"]["loss"] == pytest.approx(keras["loss"], rel=close)
        assert file["latency_ms"] > 0
    sizes = [exported["files"][variant]["size"] for variant in ALL]
    assert sizes == sorted(sizes, reverse=True)
    differences = [exported["files"][variant].get("difference") for variant in ALL]
    assert differences[0] == 0.0 < differences[1] < 1e-2
    assert all(differences[1] < difference < 0.2 for difference in differences[2:])


def test_the_report_is_in_the_signed_manifest(trained: Trained, exported: dict[str, Any]) -> None:
    shown = trained.client.get(f"/v1/releases/{exported['id']}")
    manifest = release.verify(shown["manifest"].encode(), trained.running.state.key)
    assert msgspec.to_builtins(manifest.files) == shown["files"] == exported["files"]
    assert msgspec.to_builtins(manifest.parity) == shown["parity"]
    keras = trained.export(variants=["float16"], keras={"accuracy": 0.5})
    assert (list(keras["files"]), keras["parity"]["keras"]) == (["float16"], {"accuracy": 0.5})


def test_every_variant_is_installed_and_answers_on_a_device(trained: Trained, exported: dict[str, Any]) -> None:
    inputs = trained.client.put_blob(tensors.dump({"x": trained.held_out.x}))
    for variant in ALL:
        assert trained.ask("install", release=exported["id"], variant=variant)["state"] == "done"
        answer = trained.ask("infer", inputs=inputs)["outcome"]["outputs"]["sha256"]
        outputs = tensors.load(trained.client.get_blob(answer))
        metrics = exported["files"][variant]["metrics"]
        assert accuracy(outputs, trained.held_out) == pytest.approx(metrics["accuracy"])
        assert trained.ask("report")["outcome"]["variant"] == variant


def test_a_devices_own_files_are_what_the_converter_makes_of_its_weights(trained: Trained, tmp_path: Path) -> None:
    import_keras()
    from umbel_server.compiler.inference_file import converted, saved_model
    from umbel_server.compiler.keras_model import keras_parts
    from umbel_server.compiler.step import trace

    task = load_task(TASKS / "digits.py")
    parts = keras_parts(task, 0)
    traced = trace(task, parts)
    (own,) = (trained.config.state / "personal").glob("*.safetensors")
    weights = tensors.load(own.read_bytes())
    saved = saved_model(task, parts, traced, [weights[w.path] for w in parts.weights], tmp_path)
    for variant in ("float32", "int8"):
        outcome = trained.ask("export", plan=trained.plan.sha256, variant=variant)["outcome"]
        assert outcome.get("variant", "float32") == variant
        model = trained.client.get_blob(outcome["model"]["sha256"])
        assert model == converted(task, saved, int8=variant == "int8")
        assert (trained.config.state / "exports" / f"digits.{variant}.tflite").read_bytes() == model
    with pytest.raises(UmbelError, match="a device makes float32 and int8 files itself; float16 is made on the server"):
        trained.ask("export", plan=trained.plan.sha256, variant="float16")


def test_what_cannot_be_exported_is_said_and_nothing_is_stored(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, flat, damaged = trained.put(trained.train.x[:5]), trained.put(np.zeros(5)), trained.client.put_blob(b"rows")
    before = trained.kept()
    for wanted, sentence in (
        ({"variants": ["int8-full"]}, "int8-full is calibrated on a representative set of inputs: give one"),
        ({"variants": []}, "a release holds one or more of float32, float16, int8, int8-full, each once; got none"),
        ({"variants": ["int8", "int8"]}, "each once; got int8, int8"),
        ({"variants": ["int4"]}, "int4"),
        ({"representative": rows}, "only int8-full is made with it"),
        ({"variants": ALL, "representative": flat}, "the representative set: array 'x' should have shape"),
        ({"variants": ALL, "representative": damaged}, "the representative set: expected examples in an .npz file"),
        ({"examples": rows}, "the held-out examples: array 'y' is missing"),
        ({"examples": "0" * 64}, "not on this server"),
        ({"round": 9}, "no checkpoint of round 9"),
        ({"colour": "red"}, "colour"),
    ):
        with pytest.raises(UmbelError, match=sentence):
            trained.export(**wanted)
    monkeypatch.setattr("umbel_server.compiler.full_integer.find_spec", lambda name: None)
    with pytest.raises(UmbelError, match=r"not installed on this server: pip install 'umbel\[keras\]'"):
        trained.export(variants=ALL, representative=rows)
    assert trained.kept() == before


def test_without_held_out_examples_outputs_are_compared(trained: Trained) -> None:
    server = trained.running.server
    run = server.runs.get(trained.run)
    blind = msgspec.json.decode(msgspec.json.encode({**run.settings, "held_out": ""}))
    with server.database.transaction() as session:
        session.get_one(type(run), run.id).settings = blind
    try:
        made = trained.export()
        assert made["parity"]["rows"] == "64 random"
        assert "plan" not in made["parity"]
        assert list(made["files"]) == ALL[:3]
        for variant, file in made["files"].items():
            assert file["metrics"] == {}
            assert (file["difference"] > 0) == (variant != "float32")
    finally:
        with server.database.transaction() as session:
            session.get_one(type(run), run.id).settings = run.settings


def test_a_release_of_before_there_were_reports_is_shown(trained: Trained) -> None:
    file = {"sha256": "0" * 64, "size": 4, "metrics": {}}
    old = {"schema": 1, "id": "old", "run": trained.run, "round": 1, "plan": "p", "task": "digits", "created": 1.0}
    token = release.signing.sign_as(
        "release", msgspec.json.encode({**old, "files": {"float32": file}, "lineage": {}}), trained.running.state.key
    )
    row = Release(
        id="old", run=trained.run, round=1, task="digits", created=1.0, manifest=token, files={"float32": file}
    )
    with trained.running.server.database.transaction() as session:
        session.add(row)
    shown = trained.client.get("/v1/releases/old")
    assert (shown["parity"], shown["files"]) == (None, {"float32": file})
    assert release.verify(token, trained.running.state.key).parity is None
    with trained.running.server.database.transaction() as session:
        session.delete(session.get_one(Release, "old"))


MAKES_ALL = """
import sys
from pathlib import Path
import numpy as np
from umbel.plan import Plan
from umbel_server import api, server
from umbel_server.models.measuring import Yardstick
from umbel_server.models.variants import VARIANTS, make_variant
plan = Plan.open(Path(sys.argv[1]))
rows = {name: np.ones((4, *spec.shape), spec.dtype) for name, spec in plan.manifest.inputs.items()}
files = [make_variant(variant, plan, plan.initial_weights(), rows) for variant in VARIANTS]
yardstick = Yardstick(plan, plan.initial_weights(), files[0], None, rows)
print(len([yardstick.measure(file) for file in files]), *(name in sys.modules for name in ("tensorflow", "keras")))
print(yardstick.describe({}).rows)
"""


@pytest.mark.long
def test_the_servers_process_makes_every_file_without_tensorflow(plan_of: Callable[[str], Plan]) -> None:
    command = [sys.executable, "-c", MAKES_ALL, plan_of("digits").path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["4", "False", "False", "4", "representative"]), done.stderr
