"""Commands about devices: devices list|show|readmit|config and those of their own files, command send."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tomli_w
import typer

from umbel import tensors
from umbel.errors import UmbelError
from umbel.skew import is_wrong, sentence
from umbel.topics import check_name
from umbel_server.cli.devices import invitations, lifecycle
from umbel_server.cli.output import (
    DEFAULT_STATE,
    JsonOption,
    StateOption,
    ago,
    console,
    plain,
    print_json,
    print_table,
)
from umbel_server.client import FINAL, Client, at


class Kind(StrEnum):
    """What a command tells a device to do."""

    install = "install"
    infer = "infer"
    export = "export"
    report = "report"
    cancel = "cancel"


def add_commands(app: typer.Typer) -> None:
    """Add the groups devices and command."""
    devices = typer.Typer(no_args_is_help=True, help="Invite devices, see them, and decide about them.")
    devices.command("list")(list_devices)
    devices.command("show")(show_device)
    devices.command("readmit")(readmit)
    devices.command("config")(print_config)
    invitations.add_commands(devices)
    lifecycle.add_commands(devices)
    app.add_typer(devices, name="devices")
    command = typer.Typer(no_args_is_help=True, help="Tell devices to do something.")
    command.command("send")(send)
    command.callback()(_group)
    app.add_typer(command, name="command")


def _group() -> None:
    """Tell devices to do something."""


def list_devices(
    state: StateOption = DEFAULT_STATE,
    population: Annotated[str | None, typer.Option(help="only this population")] = None,
    json: JsonOption = False,
) -> None:
    """List the enrolled devices."""
    rows = Client.of_state(state).get("/v1/devices", population=population)
    if json:
        print_json(rows)
        return
    named = any(row["name"] for row in rows)
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
                plain(row["id"]),
                *([plain(row["name"]) or "-"] if named else []),
                plain(row["population"]),
                plain(row["kind"]),
                _state(row),
                _eligible(row),
                plain(row["trainer"]) or "-",
                str(row["examples"]),
                f"{row['rss_mb']:.0f} MB",
                plain(row["installed"]) or "-",
                ago(row["last_seen"]),
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
    row = Client.of_state(state).get(at("/v1/devices/{}/{}", population, device))
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
        console.print(f"{name:12} {plain(str(row[name]))}", highlight=False)
    if row["set_labels"]:
        console.print(f"{'set here':12} {plain(str(row['set_labels']))}", highlight=False)
    if row["state"] != "active":
        console.print(f"{row['state']:12} [red]{ago(row['state_since'])}: {_why(row)}[/]", highlight=False)
    console.print(f"{'conditions':12} {_eligible(row)}", highlight=False)
    if row["quarantined"]:
        console.print(f"{'quarantined':12} [red]{plain(row['quarantined'])}[/]", highlight=False)
    if abs(row["skew"]) >= 1:
        colour = "red" if is_wrong(row["skew"]) else "default"
        console.print(f"{'clock':12} [{colour}]{sentence(row['skew'])}[/]", highlight=False)
    if row["refused"]:
        console.print(f"{'refused':12} [yellow]{_refused(row['refused'])}[/]", highlight=False)
    console.print(f"{'last heard':12} {ago(row['last_seen'])}\n", highlight=False)
    _print_commands(row["commands"])


def readmit(
    device: Annotated[str, typer.Argument(help="the device's id")],
    population: Annotated[str, typer.Option("--population", "-p", help="its population")],
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """End a device's quarantine: it gets assignments again, and its rejected updates are counted from 0."""
    row = Client.of_state(state).post(at("/v1/devices/{}/{}/readmit", population, device))
    if json:
        print_json(row)
    else:
        console.print(f"{plain(row['id'])} of {plain(row['population'])} gets assignments again", highlight=False)


def _state(row: dict[str, Any]) -> str:
    if row["state"] != "active":
        return f"[red]{plain(row['state'])}[/]"
    return "[green]online[/]" if row["online"] else "[dim]offline[/]"


def _why(row: dict[str, Any]) -> str:
    return plain(row["state_reason"]) or "no reason was given"


def _refused(counts: dict[str, int]) -> str:
    """What was refused to a device since the server started; its log says why."""
    return plain(", ".join(f"{count:,} {what}" for what, count in sorted(counts.items())))


def _eligible(row: dict[str, Any]) -> str:
    if row["state"] != "active":
        return f"[red]{_why(row)}[/]"
    if row["quarantined"]:
        return "[red]quarantined[/]"
    reasons = ", ".join(row["reasons"])
    if not reasons and is_wrong(row["skew"]):
        reasons = f"the device's clock is {sentence(row['skew'])}"
    return f"[yellow]{plain(reasons)}[/]" if reasons else "[green]eligible[/]"


def print_config(
    device: Annotated[str, typer.Argument(help="the new device's id")],
    population: Annotated[str, typer.Option("--population", "-p", help="its population")],
    kind: Annotated[str, typer.Option(help="phone, vehicle or gateway")] = "phone",
    examples: Annotated[str, typer.Option(help="the device's .npz of examples, relative to the file")] = "examples.npz",
    expires: Annotated[str, typer.Option(help="how long it may enrol: 90s, 30m, 24h, 7d")] = "24h",
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Print the configuration file of a new device, with an invitation for it; 'umbel-agent enrol' makes one there."""
    client = Client.of_state(state)
    check_name(device, "a device id")
    (made,) = invitations.ask_for(client, population, 1, expires, [], kind)
    config = {
        "device": device,
        "population": population,
        "kind": kind,
        "server": client.url,
        "enrolment_token": made["token"],
        "examples": examples,
        "state": "state",
    }
    print(tomli_w.dumps(config), end="")


def send(
    kind: Annotated[Kind, typer.Argument(help="what to do")],
    population: Annotated[str, typer.Option("--population", "-p", help="the devices' population")],
    device: Annotated[
        list[str] | None, typer.Option("--device", "-d", help="a device; may be repeated (default: all)")
    ] = None,
    release: Annotated[str, typer.Option(help="install: the release's id")] = "",
    variant: Annotated[
        str, typer.Option(help="install: float32, float16, int8 or int8-full; export: float32 or int8")
    ] = "float32",
    inputs: Annotated[Path | None, typer.Option(help="infer: an .npz with one array an input")] = None,
    run: Annotated[str, typer.Option(help="export: the run whose plan to export")] = "",
    assignment: Annotated[str, typer.Option(help="cancel: the assignment's id")] = "",
    ttl: Annotated[float, typer.Option(help="seconds until the command expires")] = 600.0,
    wait: Annotated[float, typer.Option(help="seconds to wait for the answers")] = 30.0,
    save: Annotated[Path | None, typer.Option(help="export, infer: write the devices' files into this folder")] = None,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Send a command to devices and show how they answer; fails when one does not do it."""
    for option, seconds, least in (("--ttl", ttl, 1e-3), ("--wait", wait, 0.0)):
        if not (math.isfinite(seconds) and seconds >= least):
            raise typer.BadParameter(f"expected a number of seconds, got {seconds}", param_hint=option)
    client = Client.of_state(state)
    body: dict[str, Any] = {"population": population, "kind": kind.value, "devices": device or [], "ttl": ttl}
    if kind is Kind.install:
        body |= {"release": _needed(release, "--release"), "variant": variant}
    elif kind is Kind.infer:
        body |= {"inputs": _upload_inputs(client, inputs, population)}
    elif kind is Kind.export:
        body |= {"plan": client.get(at("/v1/runs/{}", _needed(run, "--run")))["plan"], "variant": variant}
    elif kind is Kind.cancel:
        body |= {"assignment": _needed(assignment, "--assignment")}
    commands = client.settle(client.post("/v1/commands", body), wait)
    if save is not None:
        _save(client, commands, save)
    if json:
        print_json(commands)
    else:
        _print_commands(commands)
    if any(command["state"] != "done" for command in commands):
        raise typer.Exit(1)


def _needed(value: str, option: str) -> str:
    if not value:
        raise typer.BadParameter(f"this command needs {option}")
    return value


def _upload_inputs(client: Client, path: Path | None, population: str) -> str:
    if path is None:
        raise typer.BadParameter("this command needs --inputs")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise UmbelError(f"{path}: expected inputs in an .npz file, could not read one: {error}") from error
    return client.put_blob(tensors.dump(arrays), population)


def _save(client: Client, commands: list[dict[str, Any]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for command in commands:
        outcome = command["outcome"] or {}
        if (model := outcome.get("model")) is not None:
            (folder / f"{command['device']}.tflite").write_bytes(client.get_blob(model["sha256"]))
        elif (outputs := outcome.get("outputs")) is not None:
            answers = tensors.load(client.get_blob(outputs["sha256"]))
            np.savez(folder / f"{command['device']}.npz", allow_pickle=False, **answers)


def _print_commands(commands: list[dict[str, Any]]) -> None:
    colours = {"done": "green", "pending": "yellow", "accepted": "yellow"}
    print_table(
        ("command", "device", "kind", "state", "reason"),
        (
            (
                command["id"],
                plain(command["device"]),
                plain(command["kind"]),
                f"[{colours.get(command['state'], 'red')}]{plain(command['state'])}[/]",
                plain(command["reason"]) or ("not answered yet" if command["state"] not in FINAL else ""),
            )
            for command in commands
        ),
        "No commands.",
    )
