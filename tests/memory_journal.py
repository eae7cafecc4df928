"""A journal in memory that is told when to stop."""

from collections.abc import Callable

from umbel.tensors import Tensors
from umbel_server.round_loop import Commit, Start


class MemoryJournal:
    """Remembers commits; `evaluate` gives the held-out metrics of a commit, `stop_after` ends the run after that round."""

    def __init__(
        self,
        weights: Tensors,
        evaluate: Callable[[Commit], dict[str, float]] = lambda commit: {},
        stop_after: int | None = None,
        start: Start | None = None,
    ) -> None:
        self.commits: list[Commit] = []
        self.reasons: list[str] = []
        self._start = start or Start(0, weights, {})
        self._evaluate, self._stop_after = evaluate, stop_after

    def start(self) -> Start:
        return self._start

    def should_stop(self) -> bool:
        return self._stop_after is not None and len(self.commits) >= self._stop_after

    def abandoned(self, round: int, reason: str) -> None:
        self.reasons.append(f"{round}: {reason}")

    def committed(self, commit: Commit) -> dict[str, float]:
        self.commits.append(commit)
        return self._evaluate(commit)
