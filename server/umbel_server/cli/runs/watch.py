"""The command that watches a run: a live screen on a terminal, elsewhere one line for each round."""

import time
from collections.abc import Callable, Iterator

import typer
from rich.live import Live

from umbel_server import answers
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, RunArgument, StateOption
from umbel_server.cli.output import console, span_text
from umbel_server.cli.runs.text import print_head
from umbel_server.cli.runs.watch_screen import abandoned_line, line, screen
from umbel_server.client import Client, NoAnswer

WATCH_SECONDS = 0.25
PATIENCE = 60.0
"""Seconds without an answer from the server after which watching ends; long enough for a restart of the server."""


def watch(run: RunArgument, state: StateOption = DEFAULT_STATE) -> None:
    """Watch a run until it ends or pauses; exit 1 if it fails or pauses.

    On a terminal this is a screen; elsewhere it is one line a committed round.
    """
    follow(open_client(state), run)


def follow(client: Client, run: str, quiet: bool = False) -> None:
    """Show a run until it ends or pauses; with `quiet` only wait. Raises Exit(1) when it failed or paused."""
    id = client.runs.live(run).id  # "latest" is another run as soon as one is started
    try:
        if quiet:
            row = _last(_looks(lambda: client.runs.live(id)))
        elif console.is_terminal:
            row = _on_terminal(client, id)
        else:
            row = _as_lines(client, id)
    except KeyboardInterrupt:
        console.print(f"the run goes on; see it with 'umbel runs watch {id}'", highlight=False)
        raise typer.Exit(130) from None
    if not quiet:
        print_head(row)
    if row.state in ("failed", "paused"):
        raise typer.Exit(1)


def _on_terminal(client: Client, id: str) -> answers.LiveRun:
    with Live(console=console, auto_refresh=False) as live:
        for row, trouble in _looks(lambda: client.runs.live(id)):
            live.update(screen(row, console.width, trouble), refresh=True)
    return row


def _as_lines(client: Client, id: str) -> answers.LiveRun:
    seen: list[answers.Checkpoint] = []
    told: set[tuple[int, int]] = set()

    def ask() -> answers.LiveRun:
        return client.runs.live(id, seen[-1].round if seen else None)

    for row, _ in _looks(ask):
        for attempt in reversed(row.abandoned.latest):
            key = attempt.round, attempt.attempt
            if key not in told:
                told.add(key)
                print(abandoned_line(attempt), flush=True)
        for checkpoint in row.checkpoints:
            if checkpoint.round:
                print(line(checkpoint, seen[-1] if seen else None, row.rounds), flush=True)
            seen[:] = [checkpoint]
    return row


def _last(looks: Iterator[tuple[answers.LiveRun, str]]) -> answers.LiveRun:
    *_, (row, _) = looks
    return row


def _looks(ask: Callable[[], answers.LiveRun]) -> Iterator[tuple[answers.LiveRun, str]]:
    """Yield the run repeatedly until it has ended, each time with the trouble of the last request, or "".

    Raises NoAnswer when the server has not answered for PATIENCE seconds.
    """
    row: answers.LiveRun | None = None
    heard = time.monotonic()
    while True:
        trouble = ""
        try:
            row = ask()
            heard = time.monotonic()
        except NoAnswer:
            silent = time.monotonic() - heard
            if row is None or silent > PATIENCE:
                raise
            trouble = f"no answer from the server for {span_text(silent)}; trying again"
        yield row, trouble
        if row.state != "running":
            return
        time.sleep(WATCH_SECONDS)
