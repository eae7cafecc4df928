"""The interface of trainers: weights and examples in, trained weights and metrics out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from umbel.errors import UmbelError
from umbel.examples import Examples
from umbel.messages import Train
from umbel.metrics import Sums
from umbel.plan import Plan
from umbel.tensors import Tensors
from umbel_edge.training.saved_progress import SavedProgress


class Cancelled(UmbelError):
    """Work was ended before it was finished; the message is the reason."""


@dataclass(frozen=True)
class TrainingOutcome:
    """Weights by name after training, and `per_example` sums of loss and metrics over the examples trained on."""

    weights: Tensors
    metrics: Sums


class Trainer(Protocol):
    """Trains and evaluates plans; a prepared plan is kept until another plan comes.

    `check()` is called before every batch and raises Cancelled when the work should end.
    """

    def train(
        self,
        plan: Plan,
        weights: Tensors,
        examples: Examples,
        how: Train,
        check: Callable[[], None],
        progress: SavedProgress | None = None,
    ) -> TrainingOutcome:
        """Train from `weights` as `how` says; raises UmbelError when plan, weights or examples do not fit.

        With `progress` a trainer may save its state and continue from a saved one; the outcome is the same, bit for bit.
        """

    def evaluate(self, plan: Plan, weights: Tensors, examples: Examples, check: Callable[[], None]) -> Sums:
        """The `per_example` sums of loss and metrics of `weights` over `examples`."""
