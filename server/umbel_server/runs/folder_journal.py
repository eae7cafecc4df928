"""A journal in a folder, for runs on a grid that is not ours."""

import json
from pathlib import Path
from typing import Any

from umbel.atomic import write_atomically
from umbel.errors import UmbelError
from umbel.metrics import Sums, finite, results
from umbel.plan import Plan
from umbel.tensors import Tensors, check, dump, load
from umbel_server.runs.port import NewCheckpoint

ROUNDS = "rounds.json"


class FolderJournal:
    """Checkpoints as `round-NNN.safetensors` and `rounds.json` in `folder`; an existing folder is gone on with."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder, self._plan = folder, plan

    def start(self) -> tuple[int, Tensors, Tensors]:
        """The newest committed round of the folder, or the plan's initial weights; raises UmbelError on a damaged folder."""
        rounds = self._rounds()
        if not rounds:
            return 0, self._plan.initial_weights(), {}
        newest = rounds[-1]
        path, strategy = self._path(newest, "safetensors"), self._path(newest, "strategy")
        if not path.exists():
            raise UmbelError(f"{path} is missing, {ROUNDS} names its round; name another output folder")
        weights = load(path.read_bytes())
        check(weights, self._plan.manifest.weights, f"{path}, to go on from (another plan needs another output folder)")
        return newest, weights, load(strategy.read_bytes()) if strategy.exists() else {}

    def abandoned(self, round: int, reason: str) -> None:
        """Nothing to keep: a checkpoint is written only for a round that is committed."""

    def committed(self, checkpoint: NewCheckpoint) -> dict[str, float]:
        """Write the checkpoint, then name it in `rounds.json`."""
        write_atomically(self._path(checkpoint.number, "safetensors"), dump(checkpoint.weights))
        strategy = self._path(checkpoint.number, "strategy")
        if checkpoint.strategy:
            write_atomically(strategy, dump(checkpoint.strategy))
        else:
            strategy.unlink(missing_ok=True)  # of a round that was not committed
        entries = self._entries()
        fleet = finite(results(self._plan.manifest.metrics, checkpoint.fleet_sums)) if checkpoint.fleet_sums else {}
        entries.append(
            {"round": checkpoint.number, "contributors": len(checkpoint.contributors), "fleet_metrics": fleet}
        )
        write_atomically(self._folder / ROUNDS, json.dumps(entries, indent=1).encode())
        return {}

    def evaluated(self, round: int, device: str, metrics: Sums) -> None:
        """Name a device's `per_example` sums of a checkpoint in `rounds.json`."""
        entries = self._entries()
        for entry in entries:
            if entry["round"] == round:
                entry.setdefault("evaluations", {})[device] = metrics
        write_atomically(self._folder / ROUNDS, json.dumps(entries, indent=1).encode())

    def _path(self, round: int, kind: str) -> Path:
        return self._folder / f"round-{round:03}.{kind}"

    def _rounds(self) -> list[int]:
        try:
            return [int(str(entry["round"])) for entry in self._entries()]
        except (KeyError, TypeError, ValueError) as error:
            raise UmbelError(f"{self._folder / ROUNDS}: expected a list of rounds, got something else") from error

    def _entries(self) -> list[dict[str, Any]]:
        path = self._folder / ROUNDS
        if not path.exists():
            return []
        try:
            return list(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise UmbelError(f"{path}: expected a list of rounds, could not read it: {error}") from error
