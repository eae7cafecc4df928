"""Plans and release files on ARM give the numbers that they give here."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.arm.roots import Root
from tests.contract.shared.test_litert import OLD
from umbel.plan import INFER, INFER_INT8, Plan
from umbel_server.compiler.full_integer import full_integer
from umbel_server.tflite.float16 import float16
from umbel_sim.digits import load_digits

PROGRAM = Path(__file__).parent / "programs" / "run_files.py"

pytestmark = [pytest.mark.arm, pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def files(plan_of: Callable[[str], Plan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's plan, its inference files, and the examples of twenty steps; and what this machine finds."""
    folder, plan = tmp_path_factory.mktemp("files"), plan_of("digits")
    train, _ = load_digits(0.2, np.random.default_rng(0))
    np.savez(folder / "given.npz", allow_pickle=False, x=train.x[:320], y=train.y[:320])
    (folder / "digits.plan").write_bytes(plan.path.read_bytes())
    model = plan.read(INFER)
    (folder / "float32").write_bytes(model)
    (folder / "float16").write_bytes(float16(model))
    (folder / "int8").write_bytes(plan.read(INFER_INT8))
    (folder / "int8-full").write_bytes(full_integer(model, {"x": train.x[:200]}))
    subprocess.run([sys.executable, PROGRAM, *arguments(folder, "here.npz")], check=True, timeout=120)
    return folder


def arguments(folder: Path, found: str) -> list[Path]:
    return [folder / name for name in ("digits.plan", "given.npz", found, "float32", "float16", "int8", "int8-full")]


def differences(folder: Path, one: str, other: str) -> dict[str, float]:
    """By array of both files, the largest difference between them."""
    first, second = np.load(folder / one), np.load(folder / other)
    assert first.files == second.files
    return {name: float(np.abs(first[name].astype(np.float64) - second[name]).max()) for name in first.files}


# Twenty steps end within a unit or two in the last place of the weights. tflite-runtime 2.14 rounds int8 layers in a way of its
# own, as it does on x86: an output may be one step of 1/256 away.
BOUNDS = {
    "aarch64": {"weight": 3e-8, "float32": 1e-6, "float16": 1e-6, "int8": 1e-6, "int8-full": 0.0},
    "armv7": {"weight": 6e-8, "float32": 1e-6, "float16": 1e-6, "int8": 1e-6, "int8-full": 0.004},
}


@pytest.mark.parametrize("name", BOUNDS)
def test_twenty_steps_and_every_inference_file_agree(name: str, files: Path, request: pytest.FixtureRequest) -> None:
    root: Root = request.getfixturevalue(name)
    said = root.run(PROGRAM, *arguments(files, f"{name}.npz"))
    assert said.split()[:2] == [root.machine.name, "ai-edge-litert" if name == "aarch64" else "tflite-runtime"]
    found = differences(files, "here.npz", f"{name}.npz")
    assert found.pop("loss") < 1e-5
    assert found.pop("slot:s0") == 0
    worst = {kind: max(v for n, v in found.items() if n.partition(":")[0] == kind) for kind in BOUNDS[name]}
    assert {kind for kind, value in worst.items() if value > BOUNDS[name][kind]} == set(), worst


def test_an_old_plan_whose_scalars_have_no_dimension_trains(root: Root, tmp_path: Path) -> None:
    """The runtime's own way of calling a signature ends the process here."""
    x = np.linspace(-1, 4, 40, dtype=np.float32)[:, None]
    np.savez(tmp_path / "given.npz", allow_pickle=False, x=x, y=2 * x - 1)
    for run in (root.run, lambda *words: subprocess.run([sys.executable, *words], check=True, timeout=120)):
        found = tmp_path / ("there.npz" if run == root.run else "here.npz")
        run(PROGRAM, OLD, tmp_path / "given.npz", found)
    assert max(differences(tmp_path, "here.npz", "there.npz").values()) < 1e-6
