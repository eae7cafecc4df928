"""Train a plan for some steps and answer with inference files: `run_files.py PLAN GIVEN.npz FOUND.npz FILE...`.

It runs on an ARM machine and on this one, so it needs only what a device has.
"""

import platform
import sys
from pathlib import Path

import numpy as np

from umbel.examples import Batch
from umbel.litert import Predictor, Trainable, runtime_name
from umbel.plan import TRAIN, Plan

STEPS = 20
RATE = 0.1


def main(plan_file: str, given_file: str, found_file: str, *files: str) -> None:
    """Write the weights, the last loss, the slots after a round trip, and every file's answer."""
    plan, given = Plan.open(Path(plan_file)), np.load(given_file)
    trainable = Trainable(plan.read(TRAIN), plan.manifest)
    trainable.set_weights(plan.initial_weights())
    trainable.reset()
    sums: dict[str, object] = {}
    size = plan.manifest.batch_size
    for step in range(STEPS):
        rows = slice(step * size, (step + 1) * size)
        tensors = {name: given[name][rows] for name in (*plan.manifest.inputs, *plan.manifest.targets)}
        sums = dict(trainable.train(Batch(tensors, np.ones(size, np.float32)), RATE, seed=step))
    trainable.set_slots(trainable.get_slots())
    found = {f"weight:{name}": value for name, value in trainable.get_weights().items()}
    found |= {f"slot:{name}": value for name, value in trainable.get_slots().items()}
    inputs = {name: given[name][:size] for name in plan.manifest.inputs}
    for path in map(Path, files):
        found |= {f"{path.name}:{name}": value for name, value in Predictor(path.read_bytes())(inputs).items()}
    np.savez(found_file, loss=np.array(sums["loss"]), **found)
    print(platform.machine(), runtime_name())


if __name__ == "__main__":
    main(*sys.argv[1:])
