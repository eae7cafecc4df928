"""`make build`: makes the distributions in dist/, installs each in a fresh environment, and tries it there."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.release.environments import ROOT, Environment, Failed, Steps, tool
from umbel import __version__

DIST = ROOT / "dist"
FOLD = """
import ctypes
import numpy as np
from umbel_server.aggregation import passes
try:
    ctypes.CDLL(str(passes.LIBRARY))
    print("compiled", end=" ")
except OSError:
    print("not compiled", end=" ")
print(passes.squares(np.ones(1000, np.float32)))
"""
"""The sum of squares: in C where the wheel has it, in NumPy elsewhere."""
TRAIN = """
import sys
from pathlib import Path
import numpy as np
from umbel import Plan
from umbel.examples import batches, fit
from umbel.litert import Trainable
from umbel.plan import TRAIN
plan = Plan.open(Path(sys.argv[1]))
manifest = plan.manifest
x = np.float32([[0], [1]])
examples = fit(dict(zip([*manifest.inputs, *manifest.targets], (x, 2 * x - 1))), manifest.inputs | manifest.targets, "")
trainable = Trainable(plan.read(TRAIN), manifest)
trainable.set_weights(plan.initial_weights())
trainable.reset()
for _ in range(500):
    for batch in batches(examples, manifest.batch_size):
        trainable.train(batch, 0.1)
print("learned", sorted(round(float(weight.ravel()[0]), 1) for weight in trainable.get_weights().values()))
"""
"""A device's work: 500 steps of y = 2x - 1."""


def main() -> None:
    """Build all and try each; exit code 1 where something is not as it should be."""
    steps = Steps()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            made = build(folder, steps)
            plan = folder / "line.plan"
            tool("umbel", "compile", "simulations/umbel_sim/tasks/line.py", "--output", plan)
            steps.done("compile a plan to try umbel-edge with")
            for file in made:
                environment = Environment(file.name, folder / f"try-{file.name}")
                (try_device_part if file.name.startswith("umbel_edge") else try_whole)(environment, file, plan)
                steps.done(f"install and try {file.name}")
            try_both(Environment("both", folder / "both"), made)
            steps.done("umbel and umbel-edge in one environment are refused")
    except Failed as error:
        sys.exit(f"make build: {error}")
    for file in made:
        print(f"{file.stat().st_size / 1e6:6.2f} MB  dist/{file.name}")


def build(folder: Path, steps: Steps) -> list[Path]:
    """Source distributions and wheels of umbel and umbel-edge, in dist/; on Linux the compiled wheel has a manylinux tag."""
    shutil.rmtree(DIST, ignore_errors=True)
    tool("python", "-m", "build", "--outdir", DIST, ROOT / "edge_client")
    steps.done("build umbel-edge")
    tool("python", "-m", "build", "--outdir", folder / "local", ROOT)
    (source,), (wheel,) = (folder / "local").glob("*.tar.gz"), (folder / "local").glob("*.whl")
    shutil.copy(source, DIST)
    if sys.platform == "linux" and "-none-any" not in wheel.name:
        tool("auditwheel", "repair", "--wheel-dir", DIST, wheel)
    steps.done("build umbel with compiled libraries")
    _pure_wheel(source, folder / "source")
    steps.done("build umbel without compiled libraries")
    made = sorted(DIST.iterdir())
    kinds = [name for file in made for name in ("manylinux", "none-any", ".tar.gz") if name in file.name]
    if sys.platform == "linux" and sorted(kinds) != [".tar.gz"] * 2 + ["manylinux"] + ["none-any"] * 2:
        raise Failed(
            f"dist/ has {[file.name for file in made]}; expected a manylinux wheel, two pure ones and two sources"
        )
    return made


def _pure_wheel(source: Path, folder: Path) -> None:
    """Built from the source distribution, in which no library lies that was compiled here before."""
    shutil.unpack_archive(source, folder, filter="data")
    (root,) = folder.iterdir()
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(DIST), str(root)]
    ended = subprocess.run(command, env=os.environ | {"UMBEL_PURE": "1"}, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise Failed(f"the pure wheel was not built:\n{ended.stdout}{ended.stderr}")


def try_whole(environment: Environment, file: Path, _plan: Path) -> None:
    """umbel without extras has a help and a version; with the extra `server` it makes a state, and folds as its wheel says."""
    environment.pip_install(file)
    environment.run("umbel", "--version", says=f"umbel {__version__}")
    environment.run("umbel", "--help", says="pip install 'umbel[server]'")
    environment.run("umbel", "serve", code=1, says="pip install 'umbel[server]'")
    environment.run("umbel-agent", "--version", says=f"umbel-agent {__version__}")
    environment.run("umbel-agent", "enrol", "x", code=1, says="pip install 'umbel[edge]'")
    environment.uv_install(f"umbel[server] @ {file.as_uri()}")
    environment.run("umbel", "init", "state", says="umbel serve")
    environment.run("umbel", "demo", code=1, says="pip install 'umbel[sim]'")
    how = "not compiled" if "none-any" in file.name else "compiled"
    if not environment.run("python", "-c", FOLD).startswith(f"{how} 1000.0"):
        raise Failed(f"{file.name}: expected a library that is {how}")


def try_device_part(environment: Environment, file: Path, plan: Path) -> None:
    """umbel-edge trains a plan, and has nothing of server and simulations."""
    environment.pip_install(file)
    environment.run("umbel-agent", "--version", says=f"umbel-agent {__version__}")
    environment.run("umbel-agent", "--example", says="enrolment_token")
    environment.run("python", "-c", "import umbel_server", code=1, says="No module named 'umbel_server'")
    environment.run("python", "-c", TRAIN, plan, says="learned [-1.0, 2.0]")
    print(
        f"{environment.size('umbel', 'umbel_edge'):8.2f} MB are umbel-edge, {environment.size():.0f} MB with all it needs"
    )


def try_both(environment: Environment, made: list[Path]) -> None:
    """The programs refuse to run where both distributions are installed."""
    wheels = {file.name.partition("-")[0]: file for file in made if file.suffix == ".whl"}
    environment.pip_install("--no-deps", wheels["umbel"], wheels["umbel_edge"])
    environment.pip_install("msgspec", "joserfc", "numpy", "safetensors")
    config = environment.bin / "agent.toml"
    config.write_text(environment.run("umbel-agent", "--example"))
    environment.run("umbel-agent", config, code=1, says="are both installed")


if __name__ == "__main__":
    main()
