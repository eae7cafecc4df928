"""FedProx and FedAvg when most devices are too slow for the round's deadline.

Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith: Federated Optimization in Heterogeneous Networks, MLSys 2020 (arXiv
1812.06127). As there, softmax regression on MNIST with two digits a device, 20 local epochs, 10 devices a round, of which
nine in ten are stragglers. FedAvg loses what is not there at the deadline, and with it the digits that only slow devices
have. FedProx takes less work from everybody - as many steps as a slow device can do in time - and its proximal term keeps
weights near the round's. In between lie FedProx with mu=0, which is FedAvg of less work, and FedAvg that folds late updates
into later rounds.

    UMBEL_DATA=FOLDER python simulations/scenarios/fedprox_stragglers.py --plot stragglers.png
"""

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from umbel_sim import Result, simulate
from umbel_sim.data import load
from umbel_sim.scenario import SMALL, arguments, classification, keep

BATCH, EPOCHS = 10, 20
FAST, SLOW = 0.01, 0.1
"""Seconds of a training step on a fast and on a slow device."""

MARGIN = 1.0
"""Seconds of a round that devices spend talking rather than training."""


def _softmax() -> Any:
    import keras

    return keras.Sequential([keras.Input((784,)), keras.layers.Dense(10, activation="softmax")])


def variants(deadline: float, mu: float) -> dict[str, dict[str, Any]]:
    """The settings of each curve."""
    in_time = int((deadline - MARGIN) / SLOW)
    return {
        "FedAvg, late updates dropped": {"strategy": "fedavg"},
        "FedAvg, late updates folded": {"strategy": "fedavg", "late": "fold"},
        "FedProx, mu=0, fewer steps": {"strategy": "fedavg", "max_steps": in_time},
        f"FedProx, mu={mu:g}, fewer steps": {"strategy": "fedprox", "proximal_mu": mu, "max_steps": in_time},
    }


def row_of(label: str, result: Result) -> dict[str, Any]:
    """What one curve comes to; the losses and accuracies by round are in it."""
    took_part = result.participation > 0
    return {
        "variant": label,
        "accuracy": result.rows[-1]["test_accuracy"],
        "best_accuracy": max(row["test_accuracy"] for row in result.rows),
        "loss": result.rows[-1]["test_loss"],
        "virtual_hours": result.rows[-1]["virtual_hours"],
        "wasted_share": result.summary()["wasted_share"],
        "devices_that_took_part": int(took_part.sum()),
        "accuracy_by_round": [row["test_accuracy"] for row in result.rows],
        "loss_by_round": [row["test_loss"] for row in result.rows],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train with each variant and show them side by side."""
    parser = arguments(__doc__)
    parser.add_argument("--stragglers", type=float, default=0.9, help="share of slow devices (default: 0.9)")
    parser.add_argument("--mu", type=float, default=0.1, help="weight of the proximal term (default: 0.1)")
    parser.add_argument("--rounds", type=int, default=0, help="rounds (default: 100, small: 20)")
    given = parser.parse_args(argv)
    task = SMALL if given.small else classification("softmax", _softmax, 784)
    data = load("digits" if given.small else "mnist", task)
    devices = 40 if given.small else 100
    steps = EPOCHS * -(-data.count // devices // BATCH)
    deadline = MARGIN + FAST * steps * 2
    slow, fast = (
        f"phone-low:seconds_per_step={seconds:g},spread=0={share:g}"
        for seconds, share in ((SLOW, given.stragglers), (FAST, 1 - given.stragglers))
    )
    found: list[tuple[str, Result]] = []
    console = Console()
    with console.status("compiling") as status:
        for label, settings in variants(deadline, given.mu).items():

            def told(row: dict[str, Any], label: str = label) -> None:
                status.update(f"{label}: round {row['round']}, {row['test_accuracy']:.3f}")

            result = simulate(
                task,
                data,
                devices=devices,
                partition="shards:2",
                target=10,
                deadline=deadline,
                attempts=100,
                epochs=EPOCHS,
                learning_rate=0.1 if given.small else 0.03,
                rounds=given.rounds or (20 if given.small else 100),
                mix=(slow, fast),
                seed=given.seed,
                told=told,
                **settings,
            )
            found.append((label, result))
    rows = [row_of(label, result) for label, result in found]
    shown = Table("", "accuracy", "best", "loss", "training wasted", "devices that took part", "virtual time")
    for row in rows:
        shown.add_row(
            row["variant"],
            f"{row['accuracy']:.1%}",
            f"{row['best_accuracy']:.1%}",
            f"{row['loss']:.3f}",
            f"{row['wasted_share']:.0%}",
            f"{row['devices_that_took_part']} of {devices}",
            f"{row['virtual_hours'] * 60:.0f} min",
        )
    console.print(shown)

    def draw() -> Any:
        from umbel_sim.report import plots

        return plots.comparison([(label, [result]) for label, result in found], "accuracy")

    keep(given, rows, draw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
