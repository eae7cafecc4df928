"""Commands about administrators: admin add|list|revoke."""

import time
from enum import StrEnum
from typing import Annotated

import typer
from msgspec.structs import asdict

from umbel_server import answers
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, JsonOption, StateOption
from umbel_server.cli.output import ago, console, plain, print_json, print_table, span_text
from umbel_server.cli.values import seconds_of


class RoleName(StrEnum):
    """The roles of an admin, lowest first."""

    viewer = "viewer"
    operator = "operator"
    owner = "owner"


NameArgument = Annotated[str, typer.Argument(help="the admin's name, as the audit log shows it")]


def add_commands(app: typer.Typer) -> None:
    """Add the group admin."""
    admin = typer.Typer(no_args_is_help=True, help="Add, list and revoke administrators.")
    admin.command("add")(add)
    admin.command("list")(list_admins)
    admin.command("revoke")(revoke)
    app.add_typer(admin, name="admin")


def add(
    name: NameArgument,
    role: Annotated[
        RoleName,
        typer.Option(help="viewer: read; operator: also train, send and ship; owner: also manage administrators"),
    ],
    population: Annotated[
        list[str] | None,
        typer.Option("--population", "-p", help="a population to see and act on; repeatable (default: all)"),
    ] = None,
    expires: Annotated[
        str, typer.Option(metavar="SPAN", help="how long the token is valid, such as 90d (default: for ever)")
    ] = "",
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Add an admin and print its token, which the server does not show again."""
    seconds = seconds_of(expires, "--expires") if expires else 0.0
    client = open_client(state)
    row = client.admins.add(name, role.value, population or [], seconds)
    if json:
        print_json({**asdict(row), "server": client.url})
        return
    console.print(f"[bold]{plain(row.name)}[/] is {row.role} for {_scope(row)}, {_until(row)}. On another machine:")
    console.print(f"  export UMBEL_URL={client.url}", highlight=False, soft_wrap=True)
    console.print(f"  export UMBEL_TOKEN={row.token}", highlight=False, soft_wrap=True, markup=False)
    if client.url.startswith("https:"):
        console.print("  export UMBEL_CA=ca.pem        # a copy of the state folder's", highlight=False)
    console.print("The token is shown this once; if it is lost, revoke the admin and add it again.")


def list_admins(state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """List the admins, the revoked and expired ones included."""
    rows = open_client(state).admins.list()
    if json:
        print_json(rows)
        return
    print_table(
        ("admin", "role", "populations", "state", "added", "token"),
        ((plain(row.name), row.role, _scope(row), _state(row), ago(row.created), row.id) for row in rows),
        "No admins besides the local one on the server's machine; add one with 'umbel admin add NAME --role ROLE'.",
    )


def revoke(name: NameArgument, state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """End an admin's token at once."""
    row = open_client(state).admins.revoke(name)
    if json:
        print_json(row)
    else:
        console.print(f"the token of {plain(row.name)} ({row.id}) is refused from now on", highlight=False)


def _scope(row: answers.Admin) -> str:
    return plain(", ".join(row.populations)) or "all populations"


def _until(row: answers.Admin) -> str:
    return f"for {span_text(row.expires - row.created)}" if row.expires else "for ever"


def _state(row: answers.Admin) -> str:
    if row.revoked:
        return f"[red]revoked {ago(row.revoked)}[/]"
    if not row.expires:
        return "[green]good[/]"
    left = row.expires - time.time()
    return f"[green]good for {span_text(left)}[/]" if left > 0 else f"[red]expired {ago(row.expires)}[/]"
