"""The reference of `umbel`: every command with its arguments and options, from the command itself."""

import re
from collections.abc import Iterator

import click
import typer.main
from rich.text import Text

from docs.hooks.markdown import COMMENT, code, sentence, table
from umbel_server.cli import make_app

_DEFAULT = re.compile(r"\s*[\[(]default:? (?P<value>.*?)[\])]$")
_HIDDEN = ("help", "install_completion", "show_completion")


def page() -> str:
    """The page, in Markdown."""
    root = typer.main.get_command(make_app())
    assert isinstance(root, click.Group)
    lines = [
        COMMENT,
        "# `umbel`",
        "",
        sentence(root.help or ""),
        "",
        "Every command shows its options with `--help`. A command that prints a table prints JSON with `--json`. "
        "`--debug` shows the traceback of an error. The exit code is 0 after success, 1 after a failure and 2 after wrong usage.",
        "",
    ]
    for name, command in root.commands.items():
        lines += _section(command, ("umbel", name), 2)
    return "\n".join(lines)


def _section(command: click.Command, path: tuple[str, ...], level: int) -> list[str]:
    if command.hidden:
        return []
    lines = [f"{'#' * level} `{' '.join(path)}`", "", sentence(command.help or ""), ""]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            lines += _section(child, (*path, name), level + 1)
        return lines
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    usage = [_argument(one) for one in arguments]
    lines += ["```text", " ".join([*path, "[OPTIONS]", *usage]), "```", ""]
    lines += table(("argument", "meaning"), [(code(_argument(one)), _help(one)[0]) for one in arguments])
    for panel, options in _panels(command):
        if panel:
            lines += [f"**{panel}**", ""]
        lines += table(
            ("option", "meaning", "default"), [(_names(one), _help(one)[0], code(_help(one)[1])) for one in options]
        )
    return lines


def _panels(command: click.Command) -> Iterator[tuple[str, list[click.Option]]]:
    """The options by the panel of `--help` in which they are."""
    panels: dict[str, list[click.Option]] = {}
    for option in command.params:
        if isinstance(option, click.Option) and option.name not in _HIDDEN and not option.hidden:
            panels.setdefault(getattr(option, "rich_help_panel", None) or "", []).append(option)
    yield from sorted(panels.items(), key=lambda item: item[0] != "" and list(panels).index(item[0]) + 1)


def _argument(argument: click.Argument) -> str:
    name = (argument.metavar or argument.name or "").strip("[]").upper()
    shown = f"{name}..." if argument.nargs == -1 else name
    return shown if argument.required else f"[{shown}]"


def _names(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    kind = option.metavar or option.make_metavar(click.Context(click.Command("umbel"))).removesuffix(" RANGE")
    return f"{names} `{kind}`"


def _help(parameter: click.Parameter) -> tuple[str, str]:
    """What a parameter means, and its default as the command itself shows it."""
    text = Text.from_markup(getattr(parameter, "help", None) or "").plain
    if (found := _DEFAULT.search(text)) is not None:
        return text[: found.start()], found["value"]
    default = parameter.default
    if default is None or default is False or default in ("", ()) or not getattr(parameter, "show_default", False):
        return text, ""
    if default is True:
        return text, parameter.opts[0]
    return text, str(getattr(default, "value", default))
