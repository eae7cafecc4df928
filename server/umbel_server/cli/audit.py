"""Commands about the audit log: audit list|verify."""

import json as json_text
from datetime import datetime
from typing import Annotated, Any

import typer

from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, JsonOption, StateOption
from umbel_server.cli.output import console, plain, print_json, print_table
from umbel_server.cli.values import seconds_of

VERIFY_SECONDS = 600.0


def add_commands(app: typer.Typer) -> None:
    """Add the group audit."""
    audit = typer.Typer(no_args_is_help=True, help="List and verify the audit log.")
    audit.command("list")(list_entries)
    audit.command("verify")(verify)
    app.add_typer(audit, name="audit")


def list_entries(
    since: Annotated[str, typer.Option(metavar="SPAN", help="only entries of this last span, such as 24h")] = "",
    who: Annotated[
        str, typer.Option(metavar="NAME", help="only entries of this admin, or of this device (POPULATION/ID)")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="how many entries to show at most")] = 100,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """List the entries of the audit log, newest first."""
    within = seconds_of(since, "--since") if since else None
    rows = open_client(state).audit.list(within, who or None, limit)
    if json:
        print_json(rows)
        return
    print_table(
        ("entry", "time", "actor", "action", "subject", "population", "outcome", "detail"),
        (
            (
                str(row.sequence),
                f"{datetime.fromtimestamp(row.at):%Y-%m-%d %H:%M:%S}",
                plain(row.who),
                plain(row.action),
                plain(row.subject),
                plain(row.population),
                "[green]done[/]" if row.outcome == "done" else f"[red]{plain(row.outcome)}[/]",
                plain(_detail(row.detail)),
            )
            for row in rows
        ),
        "No entries.",
    )


def verify(state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """Verify that no entry of the audit log was changed or removed; exit 1 if one was."""
    found = open_client(state).audit.verify(VERIFY_SECONDS)
    if json:
        print_json(found)
    elif found.fault:
        console.print(f"[red]{plain(found.fault)}[/]; {_count(found.entries)} before it verified", highlight=False)
    else:
        console.print(f"{_count(found.entries)} verified; the newest hash is {found.hash}", highlight=False)
    if found.fault:
        raise typer.Exit(1)


def _count(entries: int) -> str:
    return "1 entry" if entries == 1 else f"{entries} entries"


def _detail(detail: dict[str, Any]) -> str:
    return "  ".join(
        f"{name} {value if isinstance(value, str) else json_text.dumps(value)}" for name, value in detail.items()
    )
