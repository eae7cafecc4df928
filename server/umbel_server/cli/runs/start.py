"""Start a run: a new one, or one with the settings of another."""

from pathlib import Path
from typing import Annotated, Any

import typer

from umbel.errors import UmbelError
from umbel_server import answers
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, JsonOption, RunArgument, StateOption
from umbel_server.cli.output import console, plain, print_json
from umbel_server.cli.runs.settings import END, takes_settings
from umbel_server.cli.runs.watch import follow as watch_run
from umbel_server.cli.values import checkpoint
from umbel_server.client import Client

FromOption = Annotated[
    str,
    typer.Option(
        "--from-checkpoint",
        metavar="RUN[@ROUND]",
        help="start from a checkpoint of another run: the newest, or a round's",
        rich_help_panel=END,
    ),
]
HeldOutOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="an .npz to evaluate every checkpoint on", rich_help_panel=END)
]
WatchOption = Annotated[bool, typer.Option("--watch", help="watch the run until it ends")]


@takes_settings(changes=False)
def start(
    settings: dict[str, Any],
    plan: Annotated[Path, typer.Argument(help="a plan made by 'umbel compile'")],
    population: Annotated[str, typer.Option("--population", "-p", help="the population that trains")],
    follow: WatchOption = False,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
    from_checkpoint: FromOption = "",
    held_out: HeldOutOption = None,
) -> None:
    """Start a run: train a plan on a population."""
    source = checkpoint(from_checkpoint)
    client = open_client(state)
    added = client.add_plan(plan, population)
    row = client.runs.start(population, added.plan, settings | _held_out(client, held_out, population), **source)
    _announce(client, row, follow, json)


@takes_settings(changes=True)
def clone(
    settings: dict[str, Any],
    run: RunArgument,
    follow: WatchOption = False,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
    from_checkpoint: FromOption = "",
    held_out: HeldOutOption = None,
) -> None:
    """Start a run with the settings of another; options change them."""
    if "strategy" in settings:
        settings = {"options": {}, **settings}  # another strategy does not know the options of the first
    source = checkpoint(from_checkpoint)
    client = open_client(state)
    population = client.runs.show(run).population if held_out is not None else ""
    row = client.runs.clone(run, settings | _held_out(client, held_out, population), **source)
    _announce(client, row, follow, json)


def _held_out(client: Client, file: Path | None, population: str) -> dict[str, Any]:
    if file is None:
        return {}
    if not file.is_file():
        raise UmbelError(f"{file}: no such file of held-out examples")
    return {"held_out": client.put_blob(file.read_bytes(), population)}


def _announce(client: Client, row: answers.Run, follow: bool, json: bool) -> None:
    if json and follow:
        try:
            watch_run(client, row.id, quiet=True)
        finally:
            print_json(client.runs.show(row.id))
        return
    if json:
        print_json(row)
    else:
        more = "" if follow else f"; see 'umbel runs watch {row.id}'"
        console.print(
            f"run [bold]{row.id}[/] trains {plain(row.task)} on {plain(row.population)}{more}", highlight=False
        )
    if follow:
        watch_run(client, row.id)
