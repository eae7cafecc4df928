"""The counts of a simulation: one row for each round, and the participation of each device."""

import time
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.metrics import MetricSpec, finite, results
from umbel_server.runs.port import NewCheckpoint

ENDS = ("folded", "declined", "failed", "vanished", "expired", "rejected", "cancelled")


class Tally:
    """Counts since the last checkpoint, and over all.

    `participation` is int32[devices], the updates of each device that were folded. `bytes` are those of weights and
    updates that travelled, `wasted_seconds` the training of updates that were not folded.
    """

    def __init__(self, devices: int, metrics: tuple[MetricSpec, ...]) -> None:
        self.participation = np.zeros(devices, np.int32)
        self.bytes = 0
        self.made = 0
        self._metrics = metrics
        self._began = time.perf_counter()
        self.clear()

    def clear(self) -> None:
        """Begin a row."""
        self._ends: Counter[str] = Counter()
        self._offered = self._down = self._up = self._attempts = 0
        self._trained = self._wasted = self._joules = 0.0
        self._opened: float | None = None
        self._reasons: list[str] = []

    def open(self, number: int, attempt: int, now: float) -> None:
        """An attempt begins."""
        self._attempts += 1
        if self._opened is None:
            self._opened = now

    def abandoned(self, number: int, attempt: int, reason: str, now: float) -> None:
        """An attempt ends without a checkpoint."""
        self._reasons.append(reason)

    def offered(self, device: int, down: int) -> None:
        """A device is given an assignment, for which it fetches `down` bytes."""
        self.made += 1
        self._offered += 1
        self._down += down
        self.bytes += down

    def settled(self, device: int, state: str, seconds: float, up: int, joules: float) -> None:
        """An assignment has its final state, after `seconds` of training and `up` bytes sent."""
        self._ends[state] += 1
        self._up += up
        self.bytes += up
        self._trained += seconds
        self._joules += joules
        if state == "folded":
            self.participation[device] += 1
        else:
            self._wasted += seconds

    def row(self, checkpoint: NewCheckpoint, now: float) -> dict[str, Any]:
        """The round's row; the next one begins."""
        fleet = finite(results(self._metrics, checkpoint.fleet_sums)) if checkpoint.fleet_sums else {}
        wall = time.perf_counter()
        row = {
            "round": checkpoint.number,
            "virtual_hours": now / 3600,
            "round_seconds": now - (self._opened if self._opened is not None else checkpoint.opened),
            "attempts": self._attempts,
            "abandoned": "; ".join(self._reasons),
            "offered": self._offered,
            **{state: self._ends[state] for state in ENDS},
            **{f"train_{name}": value for name, value in fleet.items()},
            "bytes_down": self._down,
            "bytes_up": self._up,
            "trained_seconds": self._trained,
            "wasted_seconds": self._wasted,
            "joules": self._joules,
            "wall_seconds": wall - self._began,
        }
        self._began = wall
        self.clear()
        return row

    def restore(self, rows: list[dict[str, Any]], made: int, participation: NDArray[np.int32]) -> None:
        """Go on after `rows` and `made` assignments."""
        self.bytes = int(sum(row.get("bytes_down", 0) + row.get("bytes_up", 0) for row in rows))
        self.made = made
        self.participation[:] = participation
        self._began = time.perf_counter()
