"""A journal in a folder, for runs on a grid that is not ours."""

import json
from pathlib import Path

from umbel.atomic import write_atomically
from umbel.errors import UmbelError
from umbel.metrics import results
from umbel.plan import Plan
from umbel.tensors import check, dump, load
from umbel_server.round_loop import Commit, Start

ROUNDS = "rounds.json"


class FolderJournal:
    """Checkpoints as `round-NNN.safetensors` and `rounds.json` in `folder`; an existing folder is gone on with."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder, self._plan = folder, plan

    def start(self) -> Start:
        """The newest committed round of the folder, or the plan's initial weights; raises UmbelError on a damaged folder."""
        rounds = self._rounds()
        if not rounds:
            return Start(0, self._plan.initial_weights(), {})
        newest = rounds[-1]
        path, strategy = self._path(newest, "safetensors"), self._path(newest, "strategy")
        if not path.exists():
            raise UmbelError(f"{path} is missing, {ROUNDS} names its round; name another output folder")
        weights = load(path.read_bytes())
        check(weights, self._plan.manifest.weights, f"{path}, to go on from (another plan needs another output folder)")
        return Start(newest, weights, load(strategy.read_bytes()) if strategy.exists() else {})

    def should_stop(self) -> bool:
        """Never: Flower ends the process."""
        return False

    def abandoned(self, round: int, reason: str) -> None:
        """Nothing to keep: a checkpoint is written only for a round that is committed."""

    def committed(self, commit: Commit) -> dict[str, float]:
        """Write the checkpoint, then name it in `rounds.json`."""
        write_atomically(self._path(commit.round, "safetensors"), dump(commit.weights))
        strategy = self._path(commit.round, "strategy")
        if commit.strategy:
            write_atomically(strategy, dump(commit.strategy))
        else:
            strategy.unlink(missing_ok=True)  # of a round that was not committed
        entries = self._entries()
        fleet = results(self._plan.manifest.metrics, commit.fleet_sums) if commit.fleet_sums else {}
        entries.append({"round": commit.round, "contributors": commit.contributors, "fleet_metrics": fleet})
        write_atomically(self._folder / ROUNDS, json.dumps(entries, indent=1).encode())
        return {}

    def _path(self, round: int, kind: str) -> Path:
        return self._folder / f"round-{round:03}.{kind}"

    def _rounds(self) -> list[int]:
        try:
            return [int(str(entry["round"])) for entry in self._entries()]
        except (KeyError, TypeError, ValueError) as error:
            raise UmbelError(f"{self._folder / ROUNDS}: expected a list of rounds, got something else") from error

    def _entries(self) -> list[dict[str, object]]:
        path = self._folder / ROUNDS
        if not path.exists():
            return []
        try:
            return list(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise UmbelError(f"{path}: expected a list of rounds, could not read it: {error}") from error
