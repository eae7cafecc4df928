"""The commands that the simulations add to `umbel`."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from umbel.errors import UmbelError
from umbel_sim.simulate_command import simulate
from umbel_sim.split_command import split

NEEDED = ("ai_edge_litert", "matplotlib", "pandas", "tensorflow")
"""Modules of the extra `sim` that the commands import when they need them."""


def add_commands(app: typer.Typer) -> None:
    """Add demo, simulate and split; without the extra `sim` each says what to install."""
    missing = next((name for name in NEEDED if find_spec(name) is None), "")
    for command, needs_arguments in ((demo, False), (simulate, True), (split, True)):
        if missing:
            name, summary = command.__name__, (command.__doc__ or "").partition("\n")[0]
            app.command(name, help=summary, context_settings=_ANY)(_not_installed(name, missing))
        else:
            app.command(no_args_is_help=needs_arguments)(command)


_ANY = {"ignore_unknown_options": True, "allow_extra_args": True}


def _not_installed(name: str, missing: str) -> Callable[[], None]:
    def refuse() -> None:
        raise UmbelError(f"{missing} is not installed; '{name}' needs: pip install 'umbel[sim]'")

    return refuse


def demo(
    json: Annotated[Path | None, typer.Option("--json", help="also write the measurements to this file")] = None,
    rounds: Annotated[int, typer.Option(help="number of rounds")] = 15,
    seed: Annotated[int, typer.Option(help="seed of the data split and the first weights")] = 0,
    keep: Annotated[Path | None, typer.Option(help="keep all files and logs in this new folder")] = None,
) -> None:
    """Train, ship and use a model with eight real device agents on this machine, in under two minutes."""
    from umbel_sim.demo.story import run_demo

    run_demo(rounds, seed, json, keep)
