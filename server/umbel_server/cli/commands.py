"""Commands to devices: command send."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from umbel import tensors
from umbel.errors import UmbelError
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import (
    DEFAULT_STATE,
    JsonOption,
    StateOption,
)
from umbel_server.cli.output import plain, print_json, print_table
from umbel_server.client import FINAL, Client, at


class Kind(StrEnum):
    """What a command tells a device to do."""

    install = "install"
    infer = "infer"
    export = "export"
    report = "report"
    cancel = "cancel"


def add_commands(app: typer.Typer) -> None:
    """Add the group command."""
    command = typer.Typer(no_args_is_help=True, help="Tell devices to do something.")
    command.command("send")(send)
    command.callback()(_group)
    app.add_typer(command, name="command")


def _group() -> None:
    """Tell devices to do something."""


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
    client = open_client(state)
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
        print_commands(commands)
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


def print_commands(commands: list[dict[str, Any]]) -> None:
    """Print commands as a table."""
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
