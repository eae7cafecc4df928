"""FedAdam, FedYogi and FedAvg on Shakespeare: each device is a speaking role and learns what character comes next.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar and McMahan: Adaptive Federated Optimization, ICLR 2021 (arXiv
2003.00295). Roles write about different things at different length; a server that adapts its step to each weight is compared
with one that averages. Which is ahead depends on both learning rates: on the few lines of the small setting FedAvg is. The
model is a small one - an embedding of 8, a GRU of 64 - so that the whole takes minutes; it reads 20 characters and says after
each of them which is next.

    UMBEL_DATA=FOLDER python simulations/scenarios/adaptive_shakespeare.py --plot shakespeare.png
"""

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from umbel import Task, TensorSpec
from umbel_sim import Result, simulate
from umbel_sim.data import load
from umbel_sim.data.shakespeare import VOCABULARY_SIZE
from umbel_sim.scenario import arguments, keep

VARIANTS: dict[str, dict[str, Any]] = {
    "FedAvg": {"strategy": "fedavg"},
    "FedAdam": {"strategy": "fedadam", "eta": 0.03, "tau": 1e-3},
    "FedYogi": {"strategy": "fedyogi", "eta": 0.03, "tau": 1e-3},
}
"""tau is the paper's usual one; eta, the server's learning rate, is not tuned."""

WINDOW, SMALL_WINDOW = 20, 4


def task_of(window: int, width: int) -> Task:
    """The character model that reads `window` characters with a GRU of `width`."""

    def model() -> Any:
        import keras
        from keras import layers

        return keras.Sequential(
            [
                keras.Input((window,), dtype="int32"),
                layers.Embedding(VOCABULARY_SIZE, 8),
                layers.GRU(width, return_sequences=True),
                layers.Dense(VOCABULARY_SIZE, activation="softmax"),
            ]
        )

    return Task(
        name="characters",
        model=model,
        loss="sparse_categorical_crossentropy",
        metrics=("accuracy",),
        inputs=TensorSpec((window,), "int32"),
        targets=TensorSpec((window,), "int32"),
        batch_size=10,
    )


def row_of(label: str, result: Result) -> dict[str, Any]:
    """What one strategy comes to."""
    return {
        "variant": label,
        "accuracy": result.rows[-1]["test_accuracy"],
        "loss": result.rows[-1]["test_loss"],
        "accuracy_by_round": [row["test_accuracy"] for row in result.rows],
        "loss_by_round": [row["test_loss"] for row in result.rows],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train with each strategy and show them side by side."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=0, help="rounds (default: 100, small: 20)")
    parser.add_argument("--devices", type=int, default=0, help="the roles that say most (default: 50, small: 4)")
    parser.add_argument("--learning-rate", type=float, default=1.0, help="the devices' own (default: 1)")
    given = parser.parse_args(argv)
    task = task_of(SMALL_WINDOW, 16) if given.small else task_of(WINDOW, 64)
    data = load("shakespeare", task)
    found: list[tuple[str, Result]] = []
    console = Console()
    with console.status("compiling") as status:
        for label, settings in VARIANTS.items():

            def told(row: dict[str, Any], label: str = label) -> None:
                status.update(f"{label}: round {row['round']}, loss {row['test_loss']:.3f}")

            result = simulate(
                task,
                data,
                devices=given.devices or (4 if given.small else 50),
                partition="natural",
                target=4 if given.small else 10,
                max_steps=20 if given.small else 50,
                learning_rate=given.learning_rate,
                rounds=given.rounds or (20 if given.small else 100),
                seed=given.seed,
                told=told,
                **settings,
            )
            found.append((label, result))
    rows = [row_of(label, result) for label, result in found]
    shown = Table("", "held-out accuracy", "loss", "loss half way")
    for row in rows:
        half = row["loss_by_round"][len(row["loss_by_round"]) // 2]
        shown.add_row(row["variant"], f"{row['accuracy']:.1%}", f"{row['loss']:.3f}", f"{half:.3f}")
    console.print(shown)

    def draw() -> Any:
        from umbel_sim.report import plots

        return plots.comparison([(label, [result]) for label, result in found], "loss")

    keep(given, rows, draw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
