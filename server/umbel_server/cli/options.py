"""Options and arguments that several commands share."""

from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_STATE = Path("umbel-state")

StateOption = Annotated[
    Path, typer.Option("--state", envvar="UMBEL_STATE", help="the server's state folder, made by 'umbel init'")
]

JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for machines")]

RunArgument = Annotated[str, typer.Argument(help="the run's id, the beginning of it, or 'latest'")]

DeviceArgument = Annotated[str, typer.Argument(help="the device's id")]

PopulationOption = Annotated[str, typer.Option("--population", "-p", help="its population")]


def parameter(name: str, kind: Any, help: str, panel: str, default: str = "", **more: Any) -> Parameter:
    """An optional option of a command: None when it is not given. --help shows `default` as its meaning then.

    Typer would show such a default on a line of its own; here it is part of the sentence.
    """
    text = f"{help} [dim]\\[default: {default}][/]" if default else help
    option = typer.Option(*more.pop("names", ()), help=text, rich_help_panel=panel, show_default=False, **more)
    annotation: Any = Annotated[kind | None, option]
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)
