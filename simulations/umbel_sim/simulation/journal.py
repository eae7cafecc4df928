"""The journal of a simulation: in memory, and in one file of its folder, from which an interrupted simulation continues."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from umbel.atomic import write_atomically
from umbel.errors import UmbelError
from umbel.tensors import Tensors, dump, load
from umbel_sim.simulation.snapshot import GivenAssignment, Snapshot
from umbel_sim.simulation.tally import Tally

FILE = "checkpoint.umbel"
SAVE_SECONDS = 3.0
"""The least time between two saved checkpoints: rounds take milliseconds, a disk does not."""

Row = dict[str, Any]


class _Saved(msgspec.Struct):
    """The file: a SHA-256 of what follows, and this in msgpack; weights are safetensors bytes, `participation` int32
    little-endian."""

    identity: str
    engine: str
    version: int
    now: float
    made: int
    weights: bytes
    strategy: bytes
    bases: dict[int, bytes]
    work: list[GivenAssignment]
    assigned: list[tuple[int, float]]
    participation: bytes
    rows: list[Row]
    wall: float


class Journal:
    """Rows of rounds and the newest checkpoint of one simulation.

    `evaluate` gives the held-out metrics of weights, `on_devices` those of each of some devices. With a `folder` the newest
    checkpoint is saved at the beginning, every SAVE_SECONDS by `save_when_due`, and by `save`; a folder that holds one of the
    same `identity` is gone on with. `engine` names what trains, whose last bits are its own. Raises UmbelError on a folder of
    another identity, or a damaged file.
    """

    def __init__(
        self,
        identity: str,
        tally: Tally,
        evaluate: Callable[[Tensors], dict[str, float]],
        on_devices: Callable[[Tensors, list[int]], list[dict[str, float]]],
        folder: Path | None = None,
        told: Callable[[Row], None] = lambda row: None,
    ) -> None:
        self._identity, self._tally, self._evaluate, self._on_devices = identity, tally, evaluate, on_devices
        self._path, self._told = folder / FILE if folder is not None else None, told
        self._newest: tuple[Snapshot, int, NDArray[np.int32]] | None = None
        self._saved_at, self._earlier, self._began = time.monotonic(), 0.0, time.monotonic()
        self._is_saved = True
        self.engine = ""
        self.rows: list[Row] = []
        if self._path is not None and self._path.exists():
            self._load(self._path)

    @property
    def wall_seconds(self) -> float:
        """Seconds that the simulation has taken, interruptions left out."""
        return self._earlier + time.monotonic() - self._began

    def snapshot(self) -> Snapshot | None:
        """The snapshot to continue from; None for a new simulation."""
        return None if self._newest is None else self._newest[0]

    def metrics(self) -> dict[str, float]:
        """The newest checkpoint's held-out metrics."""
        return {name.removeprefix("test_"): value for name, value in self.rows[-1].items() if name.startswith("test_")}

    def begin(self, snapshot: Snapshot) -> None:
        """Note the weights that a simulation begins with."""
        self._take(snapshot, {"round": 0, "virtual_hours": 0.0})
        self.save()  # a folder that cannot be written is found before anything is trained

    def committed(self, snapshot: Snapshot, row: Row) -> dict[str, float]:
        """Note a checkpoint; returns its held-out metrics."""
        return self._take(snapshot, row)

    def _take(self, snapshot: Snapshot, row: Row) -> dict[str, float]:
        metrics = self._evaluate(snapshot.weights)
        self.rows.append(row | {f"test_{name}": value for name, value in metrics.items()})
        # One assignment: whenever this is interrupted, what is saved then belongs to one checkpoint.
        self._newest = snapshot, len(self.rows), self._tally.participation.copy()
        self._is_saved = False
        self._told(self.rows[-1])
        return metrics

    def evaluated(self, number: int, devices: list[int], weights: Tensors) -> None:
        """Let devices evaluate checkpoint `number`, whose row is the newest."""
        found = self._on_devices(weights, devices)
        examples = sum(one["examples"] for one in found)
        self._is_saved = False
        for name in found[0]:
            if name != "examples":
                self.rows[-1][f"device_{name}"] = sum(one[name] * one["examples"] for one in found) / examples

    def save_when_due(self) -> None:
        """Write the newest checkpoint if the last one was written SAVE_SECONDS ago."""
        if time.monotonic() - self._saved_at > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the newest checkpoint, unless it is written."""
        self._saved_at = time.monotonic()
        if self._path is None or self._newest is None or self._is_saved:
            return
        snapshot, rows, participation = self._newest
        saved = _Saved(
            self._identity,
            self.engine,
            snapshot.version,
            snapshot.now,
            snapshot.made,
            dump(snapshot.weights),
            dump(snapshot.strategy) if snapshot.strategy else b"",
            {base: dump(weights) for base, weights in snapshot.bases.items()},
            list(snapshot.work),
            list(snapshot.assigned),
            participation.astype("<i4").tobytes(),
            self.rows[:rows],
            self.wall_seconds,
        )
        try:
            data = msgspec.msgpack.encode(saved)
            write_atomically(self._path, hashlib.sha256(data).digest() + data)
        except OSError as error:
            raise UmbelError(f"{self._path}: the checkpoint cannot be written: {error.strerror or error}") from error
        self._is_saved = True

    def _load(self, path: Path) -> None:
        try:
            whole = path.read_bytes()
            digest, data = whole[:32], whole[32:]
            if hashlib.sha256(data).digest() != digest:
                raise ValueError("its bytes do not have the digest that they begin with")
            saved = msgspec.msgpack.decode(data, type=_Saved)
        except (OSError, ValueError) as error:
            raise UmbelError(
                f"{path}: expected a simulation's checkpoint, could not read one ({error}); name another output folder"
            ) from error
        if saved.identity != self._identity:
            raise UmbelError(
                f"{path.parent} holds another simulation (another task, data, settings or Umbel); name another output folder, "
                "or remove it"
            )
        snapshot = Snapshot(
            saved.version,
            saved.now,
            saved.made,
            load(saved.weights),
            load(saved.strategy) if saved.strategy else {},
            {base: load(weights) for base, weights in saved.bases.items()},
            tuple(saved.work),
            tuple(saved.assigned),
        )
        self.engine, self.rows, self._earlier = saved.engine, saved.rows, saved.wall
        self._tally.restore(saved.rows, saved.made, np.frombuffer(saved.participation, "<i4"))
        self._newest = snapshot, len(saved.rows), self._tally.participation.copy()
