"""What came of a simulation: numbers, frames, and the folder that keeps them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from umbel.atomic import open_atomically, write_atomically
from umbel.errors import UmbelError
from umbel.tensors import Tensors, dump
from umbel_sim.fleet_data import Statistics
from umbel_sim.simulation.settings import Settings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Result:
    """A simulation that ended.

    Attributes:
        state: `finished`, `paused` (too many rounds in a row were abandoned) or `failed` (a loss that is not a number).
        reason: why it ended.
        rows: a mapping a checkpoint, the initial weights first (round 0); `rounds` is the same as a frame.
        weights: the newest checkpoint's.
        participation: int32[devices], the updates of each device that were folded.
        on_devices: the newest checkpoint's metrics on the training examples of up to 200 devices.
        wall_seconds: what the simulation took.
        metrics: the names of the plan's metrics.
    """

    settings: Settings
    task: str
    data: str
    state: str
    reason: str
    rows: tuple[dict[str, Any], ...]
    weights: Tensors
    participation: NDArray[np.int32]
    statistics: Statistics
    on_devices: tuple[dict[str, float], ...]
    engine: str
    why_engine: str
    workers: int
    wall_seconds: float
    metrics: tuple[str, ...]

    @property
    def rounds(self) -> "pd.DataFrame":
        """A row a checkpoint."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    @property
    def devices(self) -> "pd.DataFrame":
        """A row for each of up to 200 devices: the newest checkpoint's metrics on its own examples."""
        import pandas as pd

        return pd.DataFrame(list(self.on_devices))

    @property
    def metric(self) -> str:
        """The metric that is shown first: the plan's first one, or the loss."""
        return self.metrics[0] if self.metrics else "loss"

    def rounds_to(self, at_least: float, metric: str = "") -> int | None:
        """The first round whose held-out `metric` (default: the first) is at least that; None when there was none."""
        key = f"test_{metric or self.metric}"
        return next((row["round"] for row in self.rows if row.get(key, -np.inf) >= at_least), None)

    def hours_to(self, at_least: float, metric: str = "") -> float | None:
        """The virtual hour of `rounds_to`."""
        number = self.rounds_to(at_least, metric)
        return None if number is None else next(row["virtual_hours"] for row in self.rows if row["round"] == number)

    @property
    def updates(self) -> int:
        """Updates that were folded."""
        return int(sum(row.get("folded", 0) for row in self.rows))

    def summary(self) -> dict[str, Any]:
        """The figures that a person asks for first."""
        newest = self.rows[-1]
        total = {name: sum(row.get(name, 0) for row in self.rows) for name in _TOTALS}
        goal = {}
        if self.settings.until:
            goal = {
                "goal": f"{self.settings.until}>={self.settings.at_least:g}",
                "rounds_to_goal": self.rounds_to(self.settings.at_least, self.settings.until),
                "virtual_hours_to_goal": self.hours_to(self.settings.at_least, self.settings.until),
            }
        return {
            "state": self.state,
            "reason": self.reason,
            "task": self.task,
            "data": self.data,
            "devices": self.settings.devices,
            "partition": self.settings.partition,
            "strategy": self.settings.strategy,
            "seed": self.settings.seed,
            "rounds": newest["round"],
            **{name: value for name, value in newest.items() if name.startswith("test_")},
            **goal,
            "virtual_hours": newest["virtual_hours"],
            "updates": self.updates,
            **total,
            "wasted_share": total["wasted_seconds"] / total["trained_seconds"] if total["trained_seconds"] else 0.0,
            "devices_that_took_part": int((self.participation > 0).sum()),
            "engine": self.engine,
            "why_engine": self.why_engine,
            "workers": self.workers,
            "wall_seconds": self.wall_seconds,
        }

    def plot_learning(self) -> "Figure":
        """Held-out metric and loss by round, and by virtual hour."""
        from umbel_sim.report import plots

        return plots.learning(self)

    def plot_devices(self) -> "Figure":
        """How the newest checkpoint does on each device's own examples."""
        from umbel_sim.report import plots

        return plots.devices(self)

    def plot_participation(self) -> "Figure":
        """How often devices took part."""
        from umbel_sim.report import plots

        return plots.participation(self)

    def plot_data(self) -> "Figure":
        """Which labels are on which devices."""
        from umbel_sim.report import plots

        return plots.data(self)

    def plot_work(self) -> "Figure":
        """What became of the assignments of each round."""
        from umbel_sim.report import plots

        return plots.work(self)

    def plot_duration(self) -> "Figure":
        """How long rounds took, in virtual time."""
        from umbel_sim.report import plots

        return plots.duration(self)

    def save(self, folder: Path) -> None:
        """Write result.json, rounds.parquet, devices.parquet, weights.safetensors, plots and report.html.

        Raises UmbelError when the folder cannot be written.
        """
        from umbel_sim.report import page, plots

        try:
            found = {"summary": self.summary(), "settings": msgspec.to_builtins(self.settings)}
            write_atomically(folder / "result.json", (json.dumps(found, indent=1) + "\n").encode())
            write_atomically(folder / "weights.safetensors", dump(self.weights))
            for name, frame in (("rounds", self.rounds), ("devices", self.devices)):
                with open_atomically(folder / f"{name}.parquet") as file:
                    frame.to_parquet(file)
            drawn = {name: plots.png(draw(self)) for name, draw in plots.ALL.items()}
            for name, data in drawn.items():
                write_atomically(folder / f"{name}.png", data)
            write_atomically(folder / "report.html", page.page(self, drawn).encode())
        except OSError as error:
            raise UmbelError(f"{folder}: the result cannot be written: {error.strerror or error}") from error


_TOTALS = (
    "offered",
    "declined",
    "failed",
    "vanished",
    "expired",
    "cancelled",
    "rejected",
    "bytes_down",
    "bytes_up",
    "trained_seconds",
    "wasted_seconds",
    "joules",
)
