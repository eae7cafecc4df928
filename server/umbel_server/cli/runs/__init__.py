"""The group runs."""

import typer

from umbel_server.cli.runs import checkpoint, control, show, start, watch


def add_commands(app: typer.Typer) -> None:
    """Add the group runs."""
    runs = typer.Typer(no_args_is_help=True, help="Start, watch, pause and stop runs.")
    runs.command("start")(start.start)
    runs.command("list")(show.list_runs)
    runs.command("show")(show.show_run)
    runs.command("watch")(watch.watch)
    runs.command("pause")(control.pause)
    runs.command("resume")(control.resume)
    runs.command("stop")(control.stop)
    runs.command("clone")(start.clone)
    checkpoint.add_commands(runs)
    app.add_typer(runs, name="runs")
