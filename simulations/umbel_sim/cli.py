"""The commands that the simulations add to `umbel`."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from umbel_sim.simulate_command import simulate
from umbel_sim.split_command import split


def add_commands(app: typer.Typer) -> None:
    """Add demo, simulate and split, when the `sim` extra is installed."""
    if importlib.util.find_spec("sklearn") is not None:
        app.command()(demo)
        app.command(no_args_is_help=True)(simulate)
        app.command(no_args_is_help=True)(split)


def demo(
    json: Annotated[Path | None, typer.Option("--json", help="also write the measurements to this file")] = None,
    rounds: Annotated[int, typer.Option(help="number of rounds")] = 15,
    seed: Annotated[int, typer.Option(help="seed of the data split and the first weights")] = 0,
    keep: Annotated[Path | None, typer.Option(help="keep all files and logs in this new folder")] = None,
) -> None:
    """Train, ship and use a model with eight real device agents on this machine, in under two minutes."""
    from umbel_sim.demo.story import run_demo

    run_demo(rounds, seed, json, keep)
