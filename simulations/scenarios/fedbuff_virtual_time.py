"""FedBuff and synchronous rounds on devices of very different speed: accuracy by virtual hour.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek and Huba: Federated Learning with Buffered Asynchronous Aggregation, AISTATS
2022 (arXiv 2106.06639). A synchronous round waits for its slowest device, and over-selection throws away what the slow
ones did. With FedBuff as many devices train all the time, and every ten updates, whoever they come from, make a
checkpoint. Some devices here are a hundred times slower than others.

    UMBEL_DATA=FOLDER python simulations/scenarios/fedbuff_virtual_time.py --plot fedbuff.png
"""

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from umbel_sim import Result, simulate
from umbel_sim.data import load
from umbel_sim.reference_models import REFERENCE_MODELS
from umbel_sim.scenario import SMALL, arguments, keep

BUFFER = 10
MIX = ("phone-low:seconds_per_step=1,spread=1.2",)
"""Log-normal speeds of sigma 1.2: the fastest hundredth is 270 times as fast as the slowest."""


def variants(concurrency: int, rounds: int) -> dict[str, dict[str, Any]]:
    """The settings of each curve: as many devices train at once in all of them."""
    every_update = max(1, rounds * concurrency // BUFFER)
    return {
        "synchronous": {"target": concurrency, "rounds": rounds},
        "synchronous, 1.3 times over-selected": {
            "target": round(concurrency / 1.3),
            "over_selection": 1.3,
            "rounds": rounds * 2,
        },
        "FedBuff": {"mode": "async", "buffer": BUFFER, "concurrency": concurrency, "rounds": every_update * 4},
    }


def row_of(label: str, result: Result, goal: float) -> dict[str, Any]:
    """What one curve comes to, with accuracies by virtual hour."""
    return {
        "variant": label,
        "goal": goal,
        "hours_to_goal": result.hours_to(goal),
        "updates_to_goal": updates_to(result, goal),
        "best_accuracy": max(row["test_accuracy"] for row in result.rows),
        "wasted_share": result.summary()["wasted_share"],
        "hours": [row["virtual_hours"] for row in result.rows],
        "accuracy": [row["test_accuracy"] for row in result.rows],
    }


def updates_to(result: Result, goal: float) -> int | None:
    """Updates that were folded before the goal was reached."""
    number = result.rounds_to(goal)
    if number is None:
        return None
    return int(sum(row.get("folded", 0) for row in result.rows if row["round"] <= number))


def main(argv: Sequence[str] | None = None) -> int:
    """Train with each variant and show them side by side."""
    parser = arguments(__doc__)
    parser.add_argument("--goal", type=float, default=0.0, help="accuracy to reach (default: 0.95, small: 0.9)")
    given = parser.parse_args(argv)
    task = SMALL if given.small else REFERENCE_MODELS["mlp"]
    data = load("digits" if given.small else "mnist", task)
    goal = given.goal or (0.9 if given.small else 0.95)
    found: list[tuple[str, Result]] = []
    console = Console()
    with console.status("compiling") as status:
        for label, settings in variants(20 if given.small else 50, 60).items():

            def told(row: dict[str, Any], label: str = label) -> None:
                status.update(f"{label}: {row['virtual_hours']:.2f} h, {row['test_accuracy']:.3f}")

            result = simulate(
                task,
                data,
                devices=100 if given.small else 500,
                partition="dirichlet:1",
                learning_rate=0.1,
                deadline=7 * 86400.0,
                mix=MIX,
                until="accuracy",
                at_least=goal,
                seed=given.seed,
                told=told,
                **settings,
            )
            found.append((label, result))
    rows = [row_of(label, result, goal) for label, result in found]
    shown = Table("", f"hours to {goal:.0%}", "updates to it", "best accuracy", "training wasted")
    for row in rows:
        hours = row["hours_to_goal"]
        shown.add_row(
            row["variant"],
            "-" if hours is None else f"{hours:.3g}",
            str(row["updates_to_goal"] or "-"),
            f"{row['best_accuracy']:.1%}",
            f"{row['wasted_share']:.0%}",
        )
    console.print(shown)

    def draw() -> Any:
        from umbel_sim.report import plots

        curves = [(row["variant"], row["hours"], row["accuracy"]) for row in rows]
        return plots.lines(curves, "Held-out accuracy by virtual hour", "virtual hours", "accuracy")

    keep(given, rows, draw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
