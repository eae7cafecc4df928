"""A journal in memory."""

from collections.abc import Callable

from umbel.metrics import Sums
from umbel.tensors import Tensors
from umbel_server.runs.port import NewCheckpoint


class MemoryJournal:
    """Remembers checkpoints; `evaluate` gives the held-out metrics of one, `newest` is where the run begins."""

    def __init__(
        self,
        weights: Tensors,
        evaluate: Callable[[NewCheckpoint], dict[str, float]] = lambda checkpoint: {},
        newest: int = 0,
        strategy: Tensors | None = None,
    ) -> None:
        self.commits: list[NewCheckpoint] = []
        self.reasons: list[str] = []
        self.evaluations: list[tuple[int, str, Sums]] = []
        self._weights, self._newest, self._strategy, self._evaluate = weights, newest, strategy or {}, evaluate

    def start(self) -> tuple[int, Tensors, Tensors]:
        return self._newest, self._weights, self._strategy

    def abandoned(self, round: int, reason: str) -> None:
        self.reasons.append(f"{round}: {reason}")

    def committed(self, checkpoint: NewCheckpoint) -> dict[str, float]:
        self.commits.append(checkpoint)
        return self._evaluate(checkpoint)

    def evaluated(self, round: int, device: str, metrics: Sums) -> None:
        self.evaluations.append((round, device, metrics))
