"""The outcome of a simulation: its numbers, and frames of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from umbel.tensors import Tensors
from umbel_sim.fleet_data import Statistics
from umbel_sim.simulation.settings import Settings

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Outcome:
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
