"""Umbel's Flower ServerApp: one strategy and one round loop on every grid - the fleet's, a simulation's and Flower's own.

A grid of ours carries its run's inputs as objects. On any other grid they are made of the strings in the run's configuration.
"""

from pathlib import Path

import msgspec
from flwr.app import ConfigRecord, Context, UserConfig
from flwr.serverapp import Grid, ServerApp

from umbel.errors import UmbelError
from umbel.plan import Plan
from umbel_server.flower import messages as flower_messages
from umbel_server.flower.internals import set_identity
from umbel_server.rounds.events import End
from umbel_server.runs.flower_config import settings_of, text_of
from umbel_server.runs.folder_journal import FolderJournal
from umbel_server.runs.grid_port import GridPort
from umbel_server.runs.loop import run_rounds
from umbel_server.runs.run_inputs import RunGrid, RunInputs

app = ServerApp()

END = "umbel-end"
"""The name of the record in the context's state that holds how the run ended: its `state` and `reason`."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train until the run ends, and note the end in the context's state; raises UmbelError.

    A grid that is not ours cannot resume a run: there a pause is an error.
    """
    set_identity()
    end = run_rounds(grid, inputs_of(grid, context.run_config))
    if end is None:
        return
    if end.state == "paused" and not isinstance(grid, RunGrid):
        raise UmbelError(f"{end.reason}; start the run again to go on from its newest checkpoint")
    context.state[END] = ConfigRecord({"state": end.state, "reason": end.reason})


def inputs_of(grid: Grid, config: UserConfig) -> RunInputs:
    """The inputs that a grid of ours carries, or those that a run's configuration names.

    The configuration names the path of a `plan`, a folder `output` for checkpoints, and the settings of
    `flower_config.settings_of`. Raises UmbelError when one of them cannot be used.
    """
    if isinstance(grid, RunGrid):
        return grid.inputs
    plan = Plan.open(Path(text_of(config, "plan", "")))
    settings = settings_of(config)
    journal = FolderJournal(Path(text_of(config, "output", "umbel-output")), plan)
    port = GridPort(grid, journal, untrained=plan.manifest.untrained)
    return RunInputs(settings, port, settings.learning_rate or plan.manifest.learning_rate)


def train_on(grid: RunGrid) -> End | None:
    """Call the ServerApp with a grid of ours; returns how the run ended, or None when its port said to leave."""
    context = flower_messages.context(grid.run.run_id, {})
    app(grid, context)
    if END not in context.state:
        return None
    return msgspec.convert(dict(context.state.config_records[END]), End)
