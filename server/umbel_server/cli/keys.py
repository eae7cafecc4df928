"""Commands about the server's signing keys: keys list|rotate."""

import time
from typing import Annotated

import typer

from umbel_server import answers
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, JsonOption, StateOption
from umbel_server.cli.output import ago, console, print_json, print_table, span_text
from umbel_server.cli.values import seconds_of

OVERLAP = "7d"


def add_commands(app: typer.Typer) -> None:
    """Add the group keys."""
    keys = typer.Typer(no_args_is_help=True, help="List and rotate the server's signing keys.")
    keys.command("list")(list_keys)
    keys.command("rotate")(rotate)
    app.add_typer(keys, name="keys")


def list_keys(state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """List the server's signing keys, oldest first."""
    rows = open_client(state).keys.list()
    if json:
        print_json(rows)
    else:
        _print(rows)


def rotate(
    overlap: Annotated[
        str, typer.Option(metavar="SPAN", help="how long the old key still signs, while devices learn the new one")
    ] = OVERLAP,
    now: Annotated[
        bool,
        typer.Option("--now", help="the old key was stolen: the new key signs at once, and devices refuse the old one"),
    ] = False,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Make a new signing key, which the old key vouches for."""
    span = 0.0 if now else seconds_of(overlap, "--overlap")
    rows = open_client(state).keys.rotate(span)
    if json:
        print_json(rows)
        return
    _print(rows)
    console.print("Back up the state folder: it holds the new key.")
    if now:
        console.print(
            "A device refuses the old key as soon as it hears of the new one, which needs only a connection to the server; "
            "'umbel keys list' says how many have.",
            soft_wrap=True,
        )


def _print(rows: list[answers.Key]) -> None:
    print_table(
        ("key", "state", "made", "confirmed"),
        ((row.key, _state(row), ago(row.made) if row.made else "at first", _confirmed(row)) for row in rows),
        "No keys.",
    )


def _state(row: answers.Key) -> str:
    now, until = time.time(), row.until or 0.0
    match row.state:
        case "signing":
            return "[green]signs[/]"
        case "announced":
            return f"[yellow]signs in {span_text((row.signs_at or 0.0) - now)}[/]"
        case "accepted":
            return f"accepted for {span_text(until - now)}"
        case "retired":
            return f"[dim]retired {ago(until)}[/]"


def _confirmed(row: answers.Key) -> str:
    return f"{row.confirmed} of {row.devices} devices" if row.devices else ""
