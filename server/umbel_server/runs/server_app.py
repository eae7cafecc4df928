"""Umbel's Flower ServerApp: one strategy and one round loop on any grid - the fleet's, a simulation's, Flower's own."""

import sys
import time
from pathlib import Path

import msgspec
from flwr.app import ConfigRecord, Context, UserConfig, UserConfigValue
from flwr.serverapp import Grid, ServerApp

from umbel.errors import NOT_DECODED, UmbelError
from umbel.plan import Plan
from umbel_server.flower import messages as flower_messages
from umbel_server.flower.strategies import make_strategy
from umbel_server.rounds import bounds
from umbel_server.rounds.policy import RoundPolicy, scalar_fields
from umbel_server.runs.folder_journal import FolderJournal
from umbel_server.runs.grid_port import GridPort
from umbel_server.runs.loop import LoopConfig, run_rounds, soon
from umbel_server.runs.port import Port

app = ServerApp()

ANY = bounds.Bounds(-sys.float_info.max, sys.float_info.max)
END = "umbel-end"
"""Where the context's state says how the run ended: a record of `state` and `reason`."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the plan named in the run's configuration.

    Configuration: `plan` (path of a bundle), `strategy`, `strategy.<option>`, `rounds`, `epochs`, `max-steps`,
    `learning-rate` (0: the plan's), `seed`, `until` and `at-least`, `budget-hours` and `budget-bytes` (end early), and
    RoundPolicy's fields by their names (`over-selection`, `quorum`, `deadline`, ...), or all of it as JSON in `policy`. On a
    grid that has no `port` of its own, `output` is the folder for checkpoints. Raises UmbelError.
    """
    flower_messages.set_identity()
    config = context.run_config
    plan = Plan.open(Path(_text(config.get("plan", ""))))
    learning_rate = _number(config, "learning-rate", 0.0) or plan.manifest.learning_rate
    options = {
        name.removeprefix("strategy."): _number(config, name, 0.0) for name in config if name.startswith("strategy.")
    }
    port: Port | None = getattr(grid, "port", None)
    end = run_rounds(
        make_strategy(_text(config.get("strategy", "fedavg")), options, learning_rate),
        port or GridPort(grid, FolderJournal(Path(_text(config.get("output", "umbel-output"))), plan)),
        policy_of(config),
        LoopConfig(
            rounds=int(_number(config, "rounds", 10)),
            learning_rate=learning_rate,
            epochs=int(_number(config, "epochs", 1)),
            max_steps=int(_number(config, "max-steps", 0)),
            seed=int(_number(config, "seed", 0)),
            until=_text(config.get("until", "")),
            at_least=_number(config, "at-least", 0.0),
            budget_hours=_number(config, "budget-hours", 0.0),
            budget_bytes=int(_number(config, "budget-bytes", 0)),
        ),
        getattr(port, "clock", time.time),
        getattr(port, "next_look", soon),
    )
    if end is None:
        return
    if port is None and end.state == "paused":
        raise UmbelError(f"{end.reason}; start the run again to go on from its newest checkpoint")
    context.state[END] = ConfigRecord({"state": end.state, "reason": end.reason})


def policy_of(config: UserConfig) -> RoundPolicy:
    """The round policy in a run's configuration; raises UmbelError on a value that it refuses."""
    try:
        given = msgspec.json.decode(_text(config.get("policy", "{}")), type=dict[str, object])
        for name in scalar_fields():
            if (value := config.get(name.replace("_", "-"))) is not None:
                given[name] = value
        return msgspec.convert(given, RoundPolicy)
    except NOT_DECODED as error:
        raise UmbelError(f"the run's round policy cannot be used: {error}") from error


def _text(value: UserConfigValue) -> str:
    return str(value)


def _number(config: dict[str, UserConfigValue], name: str, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UmbelError(f"the run's {name} should be a number, got {value!r}")
    try:
        bounds.check(f"the run's {name}", value, bounds.SETTINGS.get(name.replace("-", "_"), ANY))
    except ValueError as error:
        raise UmbelError(str(error)) from error
    return float(value)
