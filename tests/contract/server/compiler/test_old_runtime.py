"""Plans on tflite-runtime 2.14, the small interpreter that armv7 devices have, in a virtual environment of its own."""

import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from umbel.keras_import import import_keras
from umbel.litert import Predictor, Trainable
from umbel.plan import INFER, INFER_INT8, TRAIN
from umbel_sim.reference_models import REFERENCE_MODELS

import_keras()
from tests.contract.server.compiler.tasks import random_inputs  # noqa: E402
from umbel_server.compiler import CompileError, compile_task  # noqa: E402
from umbel_server.compiler.full_integer import quantise  # noqa: E402
from umbel_server.tflite.float16 import float16  # noqa: E402

PACKAGES = ("tflite-runtime==2.14.0", "numpy==1.26.4")
SCRIPT = """
import sys
import numpy as np
from tflite_runtime.interpreter import Interpreter
model, given, found, *files = sys.argv[1:]
interpreter = Interpreter(model_path=model)
run = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}
tensors = np.load(given)
run["set_weights"](**{name: tensors[name] for name in run["set_weights"].get_input_details()})
run["reset"]()
for _ in range(3):
    sums = run["train"](**{name: tensors[name] for name in run["train"].get_input_details()})
answers = {}
for i, file in enumerate(files):
    infer = Interpreter(model_path=file).get_signature_runner("infer")
    answers["answer%d" % i] = infer(**{name: tensors[name] for name in infer.get_input_details()})["output"]
np.savez(found, loss=sums["loss"], **answers, **run["get_weights"]())
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old-runtime")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES], check=True)
    return python


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tflite-runtime 2.14 has wheels up to Python 3.11")
@pytest.mark.parametrize("name", ["mlp", "cifar-cnn", "motion-gru", "vision-transformer", "text-encoder"])
@pytest.mark.long
def test_a_plan_trains_there_as_on_litert(name: str, python: Path, tmp_path: Path) -> None:
    plan = compile_task(REFERENCE_MODELS[name], tmp_path / "model.plan", check=False)
    batch, manifest = random_inputs(plan), plan.manifest
    ours = Trainable(plan.read(TRAIN), manifest)
    ours.set_weights(plan.initial_weights())
    ours.reset()
    for _ in range(3):
        sums = ours.train(batch, 0.01, seed=7)
    for file in (TRAIN, INFER, INFER_INT8):
        (tmp_path / file).write_bytes(plan.read(file))
    weights = {f"w{i}": plan.initial_weights()[spec.name] for i, spec in enumerate(manifest.weights)}
    inputs = {name: batch.tensors[name] for name in manifest.inputs}
    scalars = {"learning_rate": np.array([0.01], np.float32), "seed": np.array([7], np.int32)}
    given = {**weights, **batch.tensors, "sample_weight": batch.sample_weight, **scalars}
    np.savez(tmp_path / "given.npz", **given)  # type: ignore[arg-type]
    (tmp_path / "half.tflite").write_bytes(float16(plan.read(INFER)))
    files = [INFER, INFER_INT8, "half.tflite"]
    if name == "vision-transformer":  # its GELU divides, which this runtime does not do in int8
        with pytest.raises(CompileError, match="DIV has no int8 form"):
            quantise(plan.read(INFER), inputs)
    else:
        (tmp_path / "full.tflite").write_bytes(quantise(plan.read(INFER), inputs))
        files.append("full.tflite")
    paths = (TRAIN, "given.npz", "found.npz", *files)
    command = [python, "-c", SCRIPT, *(tmp_path / path for path in paths)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["loss"], sums["loss"], rtol=1e-4)
    for i, (file, close) in enumerate(zip(files, (1e-5, 0.01, 1e-5, 0.02), strict=False)):
        # The older one may round another way when it quantises what goes into an int8 layer.
        answer = Predictor((tmp_path / file).read_bytes())(inputs)["output"]
        np.testing.assert_allclose(found[f"answer{i}"], answer, atol=close)
    for i, spec in enumerate(manifest.weights):
        np.testing.assert_allclose(found[f"w{i}"], ours.get_weights()[spec.name], rtol=1e-3, atol=1e-5)
