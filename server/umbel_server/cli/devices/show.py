"""Devices: list and show them."""

from typing import Annotated

import typer

from umbel.skew import is_wrong, sentence
from umbel_server import answers
from umbel_server.cli.commands import print_commands
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import (
    DEFAULT_STATE,
    JsonOption,
    StateOption,
)
from umbel_server.cli.output import ago, console, plain, print_json, print_table


def list_devices(
    state: StateOption = DEFAULT_STATE,
    population: Annotated[str | None, typer.Option(help="only this population")] = None,
    json: JsonOption = False,
) -> None:
    """List the enrolled devices."""
    rows = open_client(state).devices.list(population)
    if json:
        print_json(rows)
        return
    named = any(row.name for row in rows)
    print_table(
        (
            "device",
            *(["name"] if named else []),
            "population",
            "kind",
            "state",
            "conditions",
            "trainer",
            "examples",
            "memory",
            "installed",
            "last heard",
        ),
        (
            (
                plain(row.id),
                *([plain(row.name) or "-"] if named else []),
                plain(row.population),
                plain(row.kind),
                _state(row),
                _eligible(row),
                plain(row.trainer) or "-",
                str(row.examples),
                f"{row.rss_mb:.0f} MB",
                plain(row.installed) or "-",
                ago(row.last_seen),
            )
            for row in rows
        ),
        "No device is enrolled yet; invite one with 'umbel devices invite --population NAME'.",
    )


def show_device(
    device: Annotated[str, typer.Argument(help="the device's id")],
    population: Annotated[str, typer.Option("--population", "-p", help="its population")],
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Show one device and its latest commands."""
    row = open_client(state).devices.show(population, device)
    if json:
        print_json(row)
        return
    for name in (
        "id",
        "name",
        "population",
        "kind",
        "state",
        "online",
        "trainer",
        "runtime",
        "agent",
        "examples",
        "installed",
        "labels",
    ):
        console.print(f"{name:12} {plain(str(getattr(row, name)))}", highlight=False)
    if row.set_labels:
        console.print(f"{'set here':12} {plain(str(row.set_labels))}", highlight=False)
    if row.state != "active":
        console.print(f"{row.state:12} [red]{ago(row.state_since)}: {_why(row)}[/]", highlight=False)
    console.print(f"{'conditions':12} {_eligible(row)}", highlight=False)
    if row.quarantined:
        console.print(f"{'quarantined':12} [red]{plain(row.quarantined)}[/]", highlight=False)
    if abs(row.skew) >= 1:
        colour = "red" if is_wrong(row.skew) else "default"
        console.print(f"{'clock':12} [{colour}]{sentence(row.skew)}[/]", highlight=False)
    if row.refused:
        console.print(f"{'refused':12} [yellow]{_refused(row.refused)}[/]", highlight=False)
    console.print(f"{'last heard':12} {ago(row.last_seen)}\n", highlight=False)
    print_commands(row.commands)


def _state(row: answers.Device) -> str:
    if row.state != "active":
        return f"[red]{plain(row.state)}[/]"
    return "[green]online[/]" if row.online else "[dim]offline[/]"


def _why(row: answers.Device) -> str:
    return plain(row.state_reason) or "no reason was given"


def _refused(counts: dict[str, int]) -> str:
    """The counts of a device's refused requests and messages since the server started; its log has the reasons."""
    return plain(", ".join(f"{count:,} {what}" for what, count in sorted(counts.items())))


def _eligible(row: answers.Device) -> str:
    if row.state != "active":
        return f"[red]{_why(row)}[/]"
    if row.quarantined:
        return "[red]quarantined[/]"
    reasons = ", ".join(row.reasons)
    if not reasons and is_wrong(row.skew):
        reasons = f"the device's clock is {sentence(row.skew)}"
    return f"[yellow]{plain(reasons)}[/]" if reasons else "[green]eligible[/]"
