"""The arguments and the output files that all scripts in simulations/scenarios share."""

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel import Task, TensorSpec
from umbel.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def arguments(documentation: str | None) -> argparse.ArgumentParser:
    """An argument parser with --small, --seed, --json and --plot, which shows the script's docstring.

    It also turns off warnings about abandoned rounds, because a scenario reports them as figures.
    """
    logging.getLogger("umbel.rounds").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--small", action="store_true", help="seconds instead of minutes, on data that is there already"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws everything that is left to chance (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them into FILE, a PNG")
    return parser


def keep(given: argparse.Namespace, rows: list[dict[str, Any]], draw: "Callable[[], Figure]") -> None:
    """Write `rows` and the picture that `draw` makes where the arguments say."""
    if given.json is not None:
        write_atomically(given.json, (json.dumps(rows, indent=1) + "\n").encode())
    if given.plot is not None:
        from umbel_sim.report.plots import png

        write_atomically(given.plot, png(draw()))


def _perceptron() -> Any:
    import keras
    from keras import layers

    return keras.Sequential(
        [keras.Input((64,)), layers.Dense(32, activation="relu"), layers.Dense(10, activation="softmax")]
    )


def classification(name: str, model: Callable[[], Any], inputs: int) -> Task:
    """A task that tells classes apart by their probabilities, in batches of 10 vectors of `inputs` numbers."""
    return Task(
        name=name,
        model=model,
        loss="sparse_categorical_crossentropy",
        metrics=("accuracy",),
        inputs=TensorSpec((inputs,)),
        targets=TensorSpec((), "int32"),
        batch_size=10,
    )


SMALL = classification("small-perceptron", _perceptron, 64)
"""64-32-10, for the digits that come with Umbel: what small settings train."""
