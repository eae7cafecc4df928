"""Umbel's Flower ServerApp: one strategy and one round loop on any grid - the fleet's, a simulation's, Flower's own."""

import math
from pathlib import Path

from flwr.app import Context, UserConfigValue
from flwr.serverapp import Grid, ServerApp

from umbel.errors import UmbelError
from umbel.plan import Plan
from umbel_server import flower_messages
from umbel_server.folder_journal import FolderJournal
from umbel_server.round_loop import LoopConfig, run_rounds
from umbel_server.selection import Selection
from umbel_server.strategies import make_strategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the plan named in the run's configuration.

    Configuration: `plan` (path of a bundle), `strategy`, `strategy.<option>`, `rounds`, `fraction`, `minimum`, `epochs`,
    `max-steps`, `learning-rate` (0: the plan's), `seed`, `deadline` (seconds), `until` and `at-least` (end early),
    and `output`, the folder for checkpoints on a grid that has no `journal` of its own. Raises UmbelError.
    """
    flower_messages.set_identity()
    config = context.run_config
    plan = Plan.open(Path(_text(config.get("plan", ""))))
    learning_rate = _number(config, "learning-rate", 0.0) or plan.manifest.learning_rate
    seed = int(_number(config, "seed", 0))
    options = {
        name.removeprefix("strategy."): _number(config, name, 0.0, least=-math.inf)
        for name in config
        if name.startswith("strategy.")
    }
    journal = getattr(grid, "journal", None)
    if journal is None:
        journal = FolderJournal(Path(_text(config.get("output", "umbel-output"))), plan)
    run_rounds(
        make_strategy(_text(config.get("strategy", "fedavg")), options, learning_rate),
        Selection(grid, _number(config, "fraction", 1.0), int(_number(config, "minimum", 1, least=1)), seed),
        journal,
        LoopConfig(
            rounds=int(_number(config, "rounds", 10, least=1)),
            learning_rate=learning_rate,
            epochs=int(_number(config, "epochs", 1, least=1)),
            max_steps=int(_number(config, "max-steps", 0)),
            seed=seed,
            deadline=_number(config, "deadline", 120.0),
            until=_text(config.get("until", "")),
            at_least=_number(config, "at-least", 0.0, least=-math.inf),
        ),
    )


def _text(value: UserConfigValue) -> str:
    return str(value)


def _number(config: dict[str, UserConfigValue], name: str, default: float, least: float = 0.0) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UmbelError(f"the run's {name} should be a number, got {value!r}")
    if not least <= value < math.inf:
        raise UmbelError(f"the run's {name} should be at least {least:g}, got {value}")
    return float(value)
