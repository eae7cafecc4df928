"""Decide about a device: suspend, resume, revoke, readmit, rename, label, delete."""

from typing import Annotated

import typer

from umbel_server import answers
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, DeviceArgument, JsonOption, PopulationOption, StateOption
from umbel_server.cli.output import console, plain, print_json
from umbel_server.cli.values import pair

ReasonOption = Annotated[str, typer.Option(help="the reason; it is shown, and the device is told")]


def readmit(
    device: Annotated[str, typer.Argument(help="the device's id")],
    population: Annotated[str, typer.Option("--population", "-p", help="its population")],
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """End a device's quarantine, and count its rejected updates from 0."""
    row = open_client(state).devices.readmit(population, device)
    if json:
        print_json(row)
    else:
        console.print(f"{plain(row.id)} of {plain(row.population)} gets assignments again", highlight=False)


def suspend(
    device: DeviceArgument,
    population: PopulationOption,
    reason: ReasonOption = "",
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Suspend a device: cancel its work, and give it none until it is resumed."""
    row = open_client(state).devices.suspend(population, device, reason)
    _say(row, json, "is suspended: its work is cancelled, and it waits until 'umbel devices resume'")


def resume(
    device: DeviceArgument,
    population: PopulationOption,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Give a suspended device work again."""
    _say(open_client(state).devices.resume(population, device), json, "takes part again")


def revoke(
    device: DeviceArgument,
    population: PopulationOption,
    reason: ReasonOption = "",
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Refuse a device and its key for good; its work is cancelled."""
    row = open_client(state).devices.revoke(population, device, reason)
    _say(row, json, "is revoked for good: its work is cancelled, and its key is refused")


def rename(
    device: DeviceArgument,
    name: Annotated[str, typer.Argument(help="the name to show; '' for none")],
    population: PopulationOption,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Set the name that people see; the device's id stays."""
    row = open_client(state).devices.rename(population, device, name)
    shown = f"is shown as {plain(repr(name))}" if name else "has no name"
    _say(row, json, f"{shown}; its id stays {plain(row.id)}, as commands and topics name it")


def label(
    device: DeviceArgument,
    population: PopulationOption,
    labels: Annotated[list[str] | None, typer.Argument(help="NAME=VALUE to set")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="a label that was set here; repeatable")] = None,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Set or remove labels, which win over the device's own."""
    if not labels and not remove:
        raise typer.BadParameter("this command needs NAME=VALUE, or --remove NAME")
    pairs = dict(pair(text, "LABELS") for text in labels or [])
    row = open_client(state).devices.label(population, device, pairs, remove or [])
    now = ", ".join(f"{name}={value}" for name, value in row.labels.items()) or "none"
    _say(row, json, f"has the labels {plain(now)}")


def delete(
    device: DeviceArgument,
    population: PopulationOption,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Remove a device that is revoked or was never online."""
    row = open_client(state).devices.delete(population, device)
    _say(row, json, "is deleted; its key comes back only with a new invitation, a revoked one never")


def _say(row: answers.Device | answers.DeletedDevice, json: bool, sentence: str) -> None:
    if json:
        print_json(row)
    else:
        console.print(f"{plain(row.id)} of {plain(row.population)} {sentence}", highlight=False, soft_wrap=True)
