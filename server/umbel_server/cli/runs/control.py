"""Commands that pause, resume and stop a run."""

from typing import Any

from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, JsonOption, RunArgument, StateOption
from umbel_server.cli.output import print_json
from umbel_server.cli.runs.text import print_head
from umbel_server.client import at


def pause(run: RunArgument, state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """Pause a run: its devices stop, updates that came are kept."""
    _order(run, "pause", state, json)


def resume(run: RunArgument, state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """Go on with a paused run."""
    _order(run, "resume", state, json)


def stop(run: RunArgument, state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """Stop a run for good; its checkpoints stay."""
    _order(run, "stop", state, json)


def _order(run: str, what: str, state: Any, json: bool) -> None:
    row = open_client(state).post(at("/v1/runs/{}/{}", run, what))
    if json:
        print_json(row)
    else:
        print_head(row)
