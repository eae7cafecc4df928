"""The result of a simulation: its outcome with pictures, and the folder that keeps both."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from umbel.atomic import open_atomically, write_atomically
from umbel.errors import UmbelError
from umbel.tensors import dump
from umbel_sim.simulation.outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Result(Outcome):
    """An outcome that can be drawn and saved. Matplotlib is imported when a picture is asked for."""

    @classmethod
    def of(cls, outcome: Outcome) -> "Result":
        """The result of an outcome."""
        return cls(**{field.name: getattr(outcome, field.name) for field in fields(outcome)})

    def plot_learning(self) -> "Figure":
        """Held-out metric and loss by round, and by virtual hour."""
        from umbel_sim.report import plots

        return plots.learning(self)

    def plot_devices(self) -> "Figure":
        """The newest checkpoint's metric on each device's own examples."""
        from umbel_sim.report import plots

        return plots.devices(self)

    def plot_participation(self) -> "Figure":
        """The participation of devices."""
        from umbel_sim.report import plots

        return plots.participation(self)

    def plot_data(self) -> "Figure":
        """The labels on each device."""
        from umbel_sim.report import plots

        return plots.data(self)

    def plot_work(self) -> "Figure":
        """The final states of each round's assignments."""
        from umbel_sim.report import plots

        return plots.work(self)

    def plot_duration(self) -> "Figure":
        """The duration of rounds in virtual time."""
        from umbel_sim.report import plots

        return plots.duration(self)

    def save(self, folder: Path) -> None:
        """Write result.json, weights.safetensors, the tables `rounds` and `devices`, the pictures and report.html.

        The tables are Parquet files, or CSV files where pyarrow is not installed. Raises UmbelError when the folder
        cannot be written.
        """
        from umbel_sim.report import page, plots

        try:
            found = {"summary": self.summary(), "settings": msgspec.to_builtins(self.settings)}
            write_atomically(folder / "result.json", (json.dumps(found, indent=1) + "\n").encode())
            write_atomically(folder / "weights.safetensors", dump(self.weights))
            for name, frame in (("rounds", self.rounds), ("devices", self.devices)):
                _save_table(frame, folder, name)
            drawn = {name: plots.png(draw(self)) for name, draw in plots.ALL.items()}
            for name, data in drawn.items():
                write_atomically(folder / f"{name}.png", data)
            write_atomically(folder / "report.html", page.page(self, drawn).encode())
        except OSError as error:
            raise UmbelError(f"{folder}: the result cannot be written: {error.strerror or error}") from error


def _save_table(frame: Any, folder: Path, name: str) -> None:
    if find_spec("pyarrow") is None:
        write_atomically(folder / f"{name}.csv", frame.to_csv(index=False).encode())
        return
    with open_atomically(folder / f"{name}.parquet") as file:
        frame.to_parquet(file)


@dataclass(frozen=True)
class Variant:
    """Settings that were changed, and one result for each seed."""

    changes: Mapping[str, Any]
    results: tuple[Result, ...]

    @property
    def label(self) -> str:
        """The changes in words."""
        return ", ".join(f"{name}={value}" for name, value in self.changes.items()) or "as it is"
