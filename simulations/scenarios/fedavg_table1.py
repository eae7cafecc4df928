"""Table 1 of the FedAvg paper: rounds to 97% held-out accuracy on MNIST, by the share C of 100 devices in a round.

McMahan, Moore, Ramage, Hampson and Agueera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data, AISTATS 2017 (arXiv 1602.05629). The rows of the 2NN (784-200-200-10, 199,210 weights) with one local epoch of
batches of 10, IID and with two shards of one digit each a device. As in the paper the learning rate is chosen for every
cell - here from LEARNING_RATES, on the first seed - and rounds are read off the best accuracy so far.

    UMBEL_DATA=FOLDER python simulations/scenarios/fedavg_table1.py --split iid --fraction 0.1

`--cnn` is the row of the CNN with E=5, B=10, C=0.1 to 99%. A learning rate is given up as soon as it needs more rounds
than the best one before it. With `--resume` the cells that `--json FILE` has already are not computed again.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from umbel import Task
from umbel_sim import simulate
from umbel_sim.data import Dataset, load
from umbel_sim.reference_models import REFERENCE_MODELS
from umbel_sim.scenario import SMALL, arguments, keep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {
    ("iid", 0.0): 316,
    ("iid", 0.1): 87,
    ("iid", 0.2): 77,
    ("iid", 0.5): 75,
    ("iid", 1.0): 70,
    ("noniid", 0.0): 3275,
    ("noniid", 0.1): 664,
    ("noniid", 0.2): 619,
    ("noniid", 0.5): 443,
    ("noniid", 1.0): 380,
}
"""Rounds by split and fraction; fraction 0 is one device a round."""

CNN_PAPER = {("iid", 0.1): 20}
PARTITIONS = {"iid": "iid", "noniid": "shards:2"}
LEARNING_RATES = {"iid": (0.2, 0.3, 0.1, 0.05), "noniid": (0.1, 0.2, 0.05, 0.03)}
"""By split; the likeliest first, so that the others are given up early."""

CNN_LEARNING_RATES = (0.1, 0.2)
ALLOWED = 1.15
"""How many times the paper's rounds a cell may need to count as reproduced."""

GIVE_UP = 2.0
"""How many times the paper's rounds a cell is tried for."""


@dataclass(frozen=True)
class Experiment:
    """What is trained on what, to which accuracy, and the paper's rounds by split and fraction."""

    task: Task
    data: Dataset
    devices: int
    epochs: int
    goal: float
    paper: dict[tuple[str, float], int]
    learning_rates: Mapping[str, Sequence[float]]


def experiment(given: argparse.Namespace) -> Experiment:
    """What the arguments ask for."""
    if given.small:
        paper = {("iid", 0.2): 20, ("noniid", 0.2): 60}  # no paper's: what these digits are given
        rates = {"iid": (0.2, 0.1), "noniid": (0.1, 0.2)}
        return Experiment(SMALL, load("digits", SMALL), 20, 1, 0.9, paper, rates)
    if given.cnn:
        task = REFERENCE_MODELS["mnist-cnn"]
        return Experiment(task, load("mnist", task), 100, 5, 0.99, CNN_PAPER, {"iid": CNN_LEARNING_RATES})
    task = REFERENCE_MODELS["mlp"]
    return Experiment(task, load("mnist", task), 100, 1, 0.97, PAPER, LEARNING_RATES)


def rounds_to_goal(
    asked: Experiment,
    split: str,
    fraction: float,
    learning_rate: float,
    seed: int,
    most: int,
    told: Callable[..., None],
) -> int | None:
    """The round in which the goal was reached; None after `most` rounds without it, or when training diverged."""
    result = simulate(
        asked.task,
        asked.data,
        devices=asked.devices,
        partition=PARTITIONS[split],
        fraction=max(fraction, 1 / asked.devices),
        epochs=asked.epochs,
        learning_rate=learning_rate,
        rounds=most,
        until="accuracy",
        at_least=asked.goal,
        seed=seed,
        told=told,
    )
    return result.rounds_to(asked.goal)


def cell(
    asked: Experiment, split: str, fraction: float, seeds: Sequence[int], say: Callable[[str], None]
) -> dict[str, Any]:
    """One cell: the best learning rate on the first seed, and its rounds with every seed."""
    paper = asked.paper[split, fraction]
    tried: dict[str, int | None] = {}
    best, best_rate = math.floor(paper * GIVE_UP) + 1, 0.0

    def run(rate: float, seed: int, most: int) -> int | None:
        def told(row: dict[str, Any]) -> None:
            accuracy = row.get("test_accuracy", 0.0)
            say(f"{split}, C={fraction:g}, learning rate {rate:g}, seed {seed}: round {row['round']}, {accuracy:.4f}")

        return rounds_to_goal(asked, split, fraction, rate, seed, most, told)

    for rate in asked.learning_rates[split]:
        if best == 1:
            break
        found = tried[f"{rate:g}"] = run(rate, seeds[0], best - 1)
        if found is not None:
            best, best_rate = found, rate
    others = [run(best_rate, seed, math.floor(paper * GIVE_UP)) for seed in seeds[1:]] if best_rate else []
    return {
        "split": split,
        "fraction": fraction,
        "paper": paper,
        "rounds": [best if best_rate else None, *others],
        "learning_rate": best_rate,
        "seeds": list(seeds),
        "tried": tried,
    }


def median(row: dict[str, Any]) -> float:
    """The median of a cell's rounds, where a seed that never reached the goal counts as infinite."""
    return statistics.median(math.inf if own is None else own for own in row["rounds"])


def table(rows: Sequence[dict[str, Any]], goal: float) -> Table:
    """The cells beside the paper's."""
    shown = Table(title=f"rounds to {goal:.0%} held-out accuracy")
    for name in ("split", "C", "paper", "here", "ratio", f"within {ALLOWED}", "each seed", "learning rate"):
        shown.add_column(name, justify="right" if name != "split" else "left")
    for row in rows:
        here = median(row)
        shown.add_row(
            row["split"],
            f"{row['fraction']:g}" if row["fraction"] else "one",
            str(row["paper"]),
            f"{here:g}",
            f"{here / row['paper']:.2f}",
            "yes" if here <= ALLOWED * row["paper"] else "no",
            " ".join("-" if own is None else str(own) for own in row["rounds"]),
            f"{row['learning_rate']:g}",
        )
    return shown


def draw(rows: Sequence[dict[str, Any]], asked: Experiment) -> "Figure":
    """Rounds by devices a round, ours and the paper's."""
    from umbel_sim.report import plots

    curves = []
    for split in dict.fromkeys(row["split"] for row in rows):
        own = sorted((row for row in rows if row["split"] == split), key=lambda row: float(row["fraction"]))
        sizes = [max(1.0, row["fraction"] * asked.devices) for row in own]
        curves.append((f"{split}, here", sizes, [median(row) for row in own]))
        curves.append((f"{split}, paper", sizes, [float(row["paper"]) for row in own]))
    return plots.lines(curves, f"Rounds to {asked.goal:.0%} accuracy", "devices a round", "rounds", log=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Compute cells and show them."""
    parser = arguments(__doc__)
    parser.add_argument("--split", choices=tuple(PARTITIONS), help="only this row")
    parser.add_argument("--fraction", type=float, help="only this share of devices a round; 0: one device")
    parser.add_argument("--seeds", type=int, default=3, help="seeds a cell, from --seed on (default: 3)")
    parser.add_argument("--cnn", action="store_true", help="the CNN instead, E=5, to 99%%")
    parser.add_argument("--resume", action="store_true", help="keep the cells that the --json file has")
    parser.add_argument("--learning-rate", type=float, action="append", help="instead of the grid; may be repeated")
    given = parser.parse_args(argv)
    asked = experiment(given)
    if given.learning_rate:
        asked = replace(asked, learning_rates=dict.fromkeys(PARTITIONS, tuple(given.learning_rate)))
    wanted = [
        key
        for key in asked.paper
        if given.split in (None, key[0]) and (given.fraction is None or math.isclose(given.fraction, key[1]))
    ]
    if not wanted:
        parser.error(f"there is no such cell; there are {', '.join(f'{split} {c:g}' for split, c in asked.paper)}")
    seeds = range(given.seed, given.seed + given.seeds)
    rows: list[dict[str, Any]] = []
    if given.resume and given.json is not None and given.json.exists():
        rows = json.loads(given.json.read_text())
    console = Console()
    with console.status("reading the examples") as status:
        for split, fraction in wanted:
            if any((row["split"], row["fraction"]) == (split, fraction) for row in rows):
                continue
            rows.append(cell(asked, split, fraction, seeds, status.update))
            keep(given, rows, lambda: draw(rows, asked))
    keep(given, rows, lambda: draw(rows, asked))
    console.print(table(rows, asked.goal))
    return 0


if __name__ == "__main__":
    sys.exit(main())
