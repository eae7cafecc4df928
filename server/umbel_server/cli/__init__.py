"""The `umbel` command."""

import os
import sys
import traceback
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated

from umbel import __version__
from umbel.errors import UmbelError
from umbel.installed import check_distributions
from umbel.printable import printable

if TYPE_CHECKING:
    import typer


def make_app() -> "typer.Typer":
    """The `umbel` command: the server's commands, and those that other installed parts add (entry points `umbel.commands`)."""
    import typer

    from umbel_server.cli import (
        admins,
        audit,
        broker,
        commands,
        devices,
        keys,
        plans,
        quotas,
        releases,
        runs,
        server,
    )

    app = typer.Typer(
        name="umbel",
        help="Federated learning from edge to cloud: compile a Keras task, train it on a fleet, ship the model.",
        epilog="Every command takes --debug for the traceback of an error.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )

    def show_version(asked: bool) -> None:
        if asked:
            print(f"umbel {__version__}")
            raise typer.Exit

    @app.callback()
    def _options(
        version: Annotated[
            bool, typer.Option("--version", help="Show the version and exit.", callback=show_version, is_eager=True)
        ] = False,
    ) -> None: ...

    for noun in (server, plans, broker, devices, commands, runs, releases, admins, quotas, keys, audit):
        noun.add_commands(app)
    for entry in sorted(entry_points(group="umbel.commands"), key=lambda entry: entry.name):
        try:
            add_commands = entry.load()
        except ImportError:
            continue  # the extra that this part needs is not installed
        add_commands(app)
    return app


def main() -> None:
    """Run `umbel`.

    Exit codes: 0, 1 for a failure, 2 for wrong usage. An error, also of a file that cannot be read or written, is one line;
    `--debug` adds the traceback.
    """
    debug = "--debug" in sys.argv[1:]
    if debug:
        sys.argv.remove("--debug")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    try:
        import click

        app = make_app()
    except ImportError as error:
        from umbel_server.cli import without_extras

        sys.exit(without_extras.answer(sys.argv[1:], error.name or str(error)))
    try:
        check_distributions()
        # Without its standalone mode Typer returns what was raised as typer.Exit.
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())  # the help
        sys.exit(2)
    except click.UsageError as error:
        if debug:
            traceback.print_exc()
        command = error.ctx.command_path if error.ctx is not None else "umbel"
        print(f"umbel: {_sentence(error.format_message())}; see '{command} --help'", file=sys.stderr)
        sys.exit(2)
    except click.Abort:
        print("umbel: interrupted", file=sys.stderr)
        sys.exit(130)
    except UmbelError as error:
        if debug:
            traceback.print_exc()
        print(f"umbel: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        if debug:
            traceback.print_exc()
        print(
            f"umbel: {printable(str(error.filename))}: {error.strerror[:1].lower()}{error.strerror[1:]}",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("umbel: interrupted", file=sys.stderr)
        sys.exit(130)


def _sentence(text: str) -> str:
    """Click's message as one sentence on one line, without its full stop."""
    words = " ".join(text.split()).removesuffix(".")
    return printable(words[:1].lower() + words[1:])
