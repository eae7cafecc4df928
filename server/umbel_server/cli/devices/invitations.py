"""Invitations: make, list and revoke them."""

import sys
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console

from umbel_server import answers
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, JsonOption, StateOption
from umbel_server.cli.output import console, plain, print_json, print_table
from umbel_server.cli.values import pair, seconds_of
from umbel_server.client import Client

_COLOURS = {"open": "green", "used": "dim", "expired": "yellow", "revoked": "red"}

aside = Console(stderr=True, soft_wrap=True, highlight=False)
"""The console for words beside the tokens: stderr, so that the tokens can be redirected into a file."""


def invite(
    population: Annotated[str, typer.Option("--population", "-p", help="the population that they may join")],
    count: Annotated[int, typer.Option(min=1, help="how many devices")] = 1,
    expires: Annotated[str, typer.Option(help="how long each is valid: 90s, 30m, 24h, 7d")] = "24h",
    label: Annotated[
        list[str] | None, typer.Option("--label", help="a label NAME=VALUE for the devices; repeatable")
    ] = None,
    kind: Annotated[str, typer.Option(help="phone, vehicle or gateway (default: what the device says)")] = "",
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Make enrolment tokens, one for each device; they are shown only now."""
    client = open_client(state)
    made = ask_for(client, population, count, expires, label or [], kind)
    if json:
        print_json(made)
        return
    for one in made:
        print(one.token, flush=True)
    if len(made) == 1 and sys.stdout.isatty():
        _print_code(f"umbel:{client.url}#{made[0].token}")
    until = datetime.fromtimestamp(made[0].expires).strftime("%Y-%m-%d %H:%M")
    each = "Each is" if len(made) > 1 else "It is"
    aside.print(f"{each} good for one device, until {until}. On the device:")
    aside.print(f"  umbel-agent enrol {client.url} TOKEN")
    aside.print(f"[dim]or put it into the agent's configuration as enrolment_token. {_take_back(made)}[/]")


def ask_for(
    client: Client, population: str, count: int, expires: str, labels: list[str], kind: str
) -> list[answers.NewInvitation]:
    """Invitations with their tokens, as the API makes them."""
    pairs = dict(pair(text, "--label") for text in labels)
    return client.invitations.add(population, count, seconds_of(expires, "--expires"), pairs, kind)


def _print_code(text: str) -> None:
    import segno

    segno.make(text, error="m", micro=False).terminal(compact=True)


def _take_back(made: list[answers.NewInvitation]) -> str:
    which = made[0].id if len(made) == 1 else "ID"
    return f"'umbel devices uninvite {which}' takes {'it' if len(made) == 1 else 'one'} back."


def list_invitations(state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """List the invitations and their states."""
    rows = open_client(state).invitations.list()
    if json:
        print_json(rows)
        return
    print_table(
        ("invitation", "population", "kind", "labels", "state", "device", "made", "expires"),
        (
            (
                row.id,
                plain(row.population),
                plain(row.kind) or "any",
                plain(", ".join(f"{name}={value}" for name, value in row.labels.items())) or "-",
                f"[{_COLOURS[row.state]}]{row.state}[/]",
                plain(row.device) or "-",
                _moment(row.created),
                _moment(row.expires),
            )
            for row in rows
        ),
        "No invitations yet; make one with 'umbel devices invite --population NAME'.",
    )


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")


def uninvite(
    id: Annotated[str, typer.Argument(help="the invitation's id, as 'umbel devices invitations' lists it")],
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Revoke an unused invitation."""
    row = open_client(state).invitations.revoke(id)
    if json:
        print_json(row)
    else:
        console.print(
            f"invitation {row.id} into {plain(row.population)} is revoked: no device can enrol with it", highlight=False
        )
