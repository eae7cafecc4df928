"""Commands to devices: command send."""

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import click
import msgspec
import numpy as np
import typer

from umbel import tensors
from umbel.errors import UmbelError
from umbel.messages import blobs_of
from umbel_server import answers
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, JsonOption, StateOption
from umbel_server.cli.output import plain, print_json, print_table
from umbel_server.client import FINAL, Client
from umbel_server.commands.kinds import SENDABLE, RequestField, named

_WITH_FILES = ", ".join(kind.name for kind in SENDABLE.values() if kind.upload is not None)


def add_commands(app: typer.Typer) -> None:
    """Add the group command."""
    command = typer.Typer(no_args_is_help=True, help="Send commands to devices.")
    command.command("send")(_with_options(send))
    command.callback()(_group)
    app.add_typer(command, name="command")


def _group() -> None:
    """Send commands to devices."""


def send(
    *,
    kind: Annotated[str, typer.Argument(help="what to do", click_type=click.Choice(list(SENDABLE)))],
    population: Annotated[str, typer.Option("--population", "-p", help="the devices' population")],
    device: Annotated[
        list[str] | None, typer.Option("--device", "-d", help="a device; repeatable (default: all)")
    ] = None,
    ttl: Annotated[float, typer.Option(help="seconds until the command expires")] = 600.0,
    wait: Annotated[float, typer.Option(help="seconds to wait for the answers")] = 30.0,
    save: Annotated[Path | None, typer.Option(help=f"{_WITH_FILES}: write the devices' files into this folder")] = None,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
    **given: Any,
) -> None:
    """Send a command to devices and show their answers; exit 1 if a device fails."""
    for option, seconds, least in (("--ttl", ttl, 1e-3), ("--wait", wait, 0.0)):
        if not (math.isfinite(seconds) and seconds >= least):
            raise typer.BadParameter(f"expected a number of seconds, got {seconds}", param_hint=option)
    client = open_client(state)
    about = {
        field.name: _value(client, population, field, given[field.option_name])
        for field in SENDABLE[kind].request_fields
    }
    commands = client.commands.settle(client.commands.send(population, kind, device or [], ttl, **about), wait)
    if save is not None:
        _save(client, commands, save)
    if json:
        print_json(commands)
    else:
        print_commands(commands)
    if any(command.state != "done" for command in commands):
        raise typer.Exit(1)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with an option for each field of the kinds' requests in the place of its `**given`, as Typer reads it."""
    helps: dict[str, list[str]] = {}
    options: dict[str, RequestField] = {}
    for kind in SENDABLE.values():
        for field in kind.request_fields:
            options[field.option_name] = field
            helps.setdefault(field.option_name, []).append(f"{kind.name}: {field.option.help}")
    signature = inspect.signature(command)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    added = [_parameter(name, field, "; ".join(helps[name])) for name, field in options.items()]
    place = list(signature.parameters).index("ttl")

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        command(**given)

    parameters = [*own[:place], *added, *own[place:]]
    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def _parameter(name: str, field: RequestField, help: str) -> inspect.Parameter:
    kind: Any = Path | None if field.option.takes == "arrays" else str
    default = None if field.option.takes == "arrays" else field.default
    annotation = Annotated[kind, typer.Option(f"--{name}", help=help)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _value(client: Client, population: str, field: RequestField, given: Any) -> Any:
    """The value of a request's field from its option's; raises BadParameter when a required one is missing."""
    if field.option.required and not given:
        raise typer.BadParameter(f"this command needs --{field.option_name}")
    match field.option.takes:
        case "text":
            return given
        case "arrays":
            return _upload_arrays(client, given, population)
        case "plan":
            return client.runs.show(given).plan


def _upload_arrays(client: Client, path: Path, population: str) -> str:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise UmbelError(f"{path}: expected inputs in an .npz file, could not read one: {error}") from error
    return client.put_blob(tensors.dump(arrays), population)


def _save(client: Client, commands: list[answers.Command], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for command in commands:
        kind = named(command.kind)
        if kind.outcome is None or kind.upload is None or not command.outcome:
            continue
        for blob in blobs_of(msgspec.convert(command.outcome, kind.outcome)):
            path, data = folder / f"{command.device}{kind.upload.file}", client.get_blob(blob.sha256)
            if kind.upload.file == ".npz":
                np.savez(path, allow_pickle=False, **tensors.load(data))
            else:
                path.write_bytes(data)


def print_commands(commands: list[answers.Command]) -> None:
    """Print commands as a table."""
    colours = {"done": "green", "pending": "yellow", "accepted": "yellow"}
    print_table(
        ("command", "device", "kind", "state", "reason"),
        (
            (
                command.id,
                plain(command.device),
                plain(command.kind),
                f"[{colours.get(command.state, 'red')}]{plain(command.state)}[/]",
                plain(command.reason) or ("not answered yet" if command.state not in FINAL else ""),
            )
            for command in commands
        ),
        "No commands.",
    )
