"""What each device gains when it trains the global model a little further on its own examples.

Local fine-tuning as in Yu, Bagdasaryan and Shmatikov: Salvaging Federated Learning by Local Adaptation (arXiv 2002.04758).
Every device keeps a fifth of its examples back. FedAvg trains the global model on the rest; then each device fine-tunes it
with the trainer of a real agent, and both models are tried on what the device has kept back.

    UMBEL_DATA=FOLDER python simulations/scenarios/personalisation.py --partition dirichlet:0.3 --plot gains.png
"""

import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from umbel import Task
from umbel.examples import Examples
from umbel.messages import Train
from umbel.metrics import results
from umbel.plan import Plan
from umbel.tensors import Tensors
from umbel_edge.training.litert_trainer import LiteRTTrainer
from umbel_server.compiler import compile_task
from umbel_sim import simulate
from umbel_sim.data import FunctionFleet, load
from umbel_sim.fleet_data import Fleet
from umbel_sim.partitions import partition
from umbel_sim.reference_models import REFERENCE_MODELS
from umbel_sim.scenario import SMALL, arguments, keep
from umbel_sim.simulation.simulated_port import NOWHERE

KEPT_BACK = 5
"""A device keeps every fifth of its examples back, in a random order of them."""


@dataclass(frozen=True)
class Halves:
    """The examples of each device in two parts: those it trains on and those it keeps back."""

    fleet: Fleet
    seed: int

    def _order(self, device: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, device)).permutation(self.fleet.size(device))

    def _rows(self, device: int, rows: NDArray[np.int64]) -> Mapping[str, NDArray[Any]]:
        return {name: array[rows] for name, array in self.fleet.examples(device).items()}

    def kept(self, device: int) -> int:
        """How many examples a device keeps back: at least one."""
        return max(1, self.fleet.size(device) // KEPT_BACK)

    def trained(self, device: int) -> Mapping[str, NDArray[Any]]:
        """What a device trains on."""
        return self._rows(device, np.sort(self._order(device)[self.kept(device) :]))

    def kept_back(self, device: int) -> Mapping[str, NDArray[Any]]:
        """What it keeps back."""
        return self._rows(device, np.sort(self._order(device)[: self.kept(device)]))


def examples_of(arrays: Mapping[str, NDArray[Any]], plan: Plan) -> Examples:
    """Arrays in the dtypes of the plan."""
    specs = {**plan.manifest.inputs, **plan.manifest.targets}
    tensors = {name: np.ascontiguousarray(arrays[name], spec.dtype) for name, spec in specs.items()}
    return Examples(tensors, len(next(iter(tensors.values()))))


def fine_tuned(
    task: Task, weights: Tensors, halves: Halves, how: Train, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row a device: the accuracy of the global and of its own weights on what it has kept back."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="umbel-personalisation-") as folder:
        plan = compile_task(task, Path(folder) / "task.plan", check=False)
        trainer = LiteRTTrainer("")
        for device in range(halves.fleet.devices):
            say(f"fine-tuning on device {device} of {halves.fleet.devices}")
            trainer.device = f"device-{device}"
            own, kept = (examples_of(part(device), plan) for part in (halves.trained, halves.kept_back))
            tuned = trainer.train(plan, weights, own, how, _go_on).weights
            before, after = (accuracy(trainer, plan, each, kept) for each in (weights, tuned))
            rows.append({"device": device, "kept_back": kept.count, "global": before, "own": after})
    return rows


def accuracy(trainer: LiteRTTrainer, plan: Plan, weights: Tensors, examples: Examples) -> float:
    """The share of examples whose class the weights tell."""
    sums = trainer.evaluate(plan, weights, examples, _go_on)
    return results(plan.manifest.metrics, sums)["accuracy"]


def _go_on() -> None:
    """Nothing stops a device here."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train the global model, fine-tune it everywhere, and show the gains."""
    parser = arguments(__doc__)
    parser.add_argument("--partition", default="dirichlet:0.3", help="how examples lie (default: dirichlet:0.3)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of fine-tuning (default: 2)")
    given = parser.parse_args(argv)
    task = SMALL if given.small else REFERENCE_MODELS["mlp"]
    data = load("digits" if given.small else "mnist", task)
    devices = 20 if given.small else 100
    halves = Halves(partition(given.partition, data, devices, given.seed, min_examples=10), given.seed)
    fleet = FunctionFleet(halves.trained, devices, lambda device: halves.fleet.size(device) - halves.kept(device))
    rate = 0.1 if given.small else 0.05
    console = Console()
    with console.status("compiling") as status:
        result = simulate(
            task,
            fleet,
            test=data.test,
            target=10,
            rounds=30 if given.small else 50,
            learning_rate=rate,
            seed=given.seed,
            told=lambda row: status.update(f"round {row['round']}, {row['test_accuracy']:.3f}"),
        )
        how = Train("", "", 0, NOWHERE, NOWHERE, math.inf, rate / 2, given.epochs, seed=given.seed)
        rows = fine_tuned(task, result.weights, halves, how, status.update)
    gains = [row["own"] - row["global"] for row in rows]
    shown = Table("kept-back examples", "accuracy, mean", "worst tenth below", "median", title=f"{devices} devices")
    for name, label in (("global", "global model"), ("own", "fine-tuned")):
        values = [row[name] for row in rows]
        tenth, middle = np.percentile(values, (10, 50))
        shown.add_row(label, f"{np.mean(values):.1%}", f"{tenth:.1%}", f"{middle:.1%}")
    console.print(shown)
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    console.print(
        f"fine-tuning gains {np.mean(gains):+.1%} on a device: {better} are better off, {worse} worse, "
        f"{devices - better - worse} the same; the global model has {result.rows[-1]['test_accuracy']:.1%} on held-out examples"
    )

    def draw() -> Any:
        from umbel_sim.report import plots

        title = "What fine-tuning changes on each device"
        return plots.histogram(gains, title, "change of accuracy", "devices", at=0.0)

    keep(given, rows, draw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
