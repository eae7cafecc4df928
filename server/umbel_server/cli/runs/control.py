"""Commands that pause, resume and stop a run."""

from umbel_server import answers
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, JsonOption, RunArgument, StateOption
from umbel_server.cli.output import print_json
from umbel_server.cli.runs.text import print_head


def pause(run: RunArgument, state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """Pause a run: its devices stop, and received updates are kept."""
    _show(open_client(state).runs.pause(run), json)


def resume(run: RunArgument, state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """Go on with a paused run."""
    _show(open_client(state).runs.resume(run), json)


def stop(run: RunArgument, state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """Stop a run for good; its checkpoints stay."""
    _show(open_client(state).runs.stop(run), json)


def _show(row: answers.Run, json: bool) -> None:
    if json:
        print_json(row)
    else:
        print_head(row)
