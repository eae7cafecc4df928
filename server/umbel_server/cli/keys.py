"""Commands about the server's signing keys: keys list|rotate."""

import time
from typing import Annotated, Any

import typer

from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, JsonOption, StateOption
from umbel_server.cli.output import ago, console, print_json, print_table, span_text
from umbel_server.cli.values import seconds_of

OVERLAP = "7d"


def add_commands(app: typer.Typer) -> None:
    """Add the group keys."""
    keys = typer.Typer(no_args_is_help=True, help="See and change the keys with which the server signs.")
    keys.command("list")(list_keys)
    keys.command("rotate")(rotate)
    app.add_typer(keys, name="keys")


def list_keys(state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """List the server's signing keys, oldest first."""
    rows = open_client(state).get("/v1/keys")
    if json:
        print_json(rows)
    else:
        _print(rows)


def rotate(
    overlap: Annotated[
        str, typer.Option(metavar="SPAN", help="how long the old key goes on signing, while devices learn the new one")
    ] = OVERLAP,
    now: Annotated[
        bool,
        typer.Option("--now", help="the old key was stolen: the new one signs at once, the old is accepted no more"),
    ] = False,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Make a new signing key, which devices trust because the old one vouches for it."""
    span = 0.0 if now else seconds_of(overlap, "--overlap")
    rows = open_client(state).post("/v1/keys/rotate", {"overlap": span})
    if json:
        print_json(rows)
        return
    _print(rows)
    console.print("Back up the state folder: it holds the new key.")
    if now:
        console.print(
            "A device refuses the old key from the moment at which it hears of the new one, which needs the server alone; "
            "'umbel keys list' says how many have.",
            soft_wrap=True,
        )


def _print(rows: list[dict[str, Any]]) -> None:
    print_table(
        ("key", "state", "made", "confirmed"),
        ((row["key"], _state(row), ago(row["made"]) if row["made"] else "at first", _confirmed(row)) for row in rows),
        "No keys.",
    )


def _state(row: dict[str, Any]) -> str:
    now = time.time()
    match row["state"]:
        case "signing":
            return "[green]signs[/]"
        case "announced":
            return f"[yellow]signs in {span_text(row['signs_at'] - now)}[/]"
        case "accepted":
            return f"accepted for {span_text(row['until'] - now)}"
        case _:
            return f"[dim]retired {ago(row['until'])}[/]"


def _confirmed(row: dict[str, Any]) -> str:
    return f"{row['confirmed']} of {row['devices']} devices" if row["devices"] else ""
