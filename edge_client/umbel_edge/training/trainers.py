"""What a trainer is: weights and examples in, trained weights and metrics out."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from umbel.errors import UmbelError
from umbel.examples import Examples
from umbel.messages import Train
from umbel.metrics import Sums
from umbel.plan import Plan
from umbel.tensors import Tensors
from umbel_edge.training.saved_progress import Progress


class Cancelled(UmbelError):
    """Work that was ended before it was done; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """Weights by name after training, and `per_example` sums of loss and metrics over the examples trained on."""

    weights: Tensors
    metrics: Sums


class Trainer(Protocol):
    """Trains and evaluates plans; keeps what it prepared for a plan until another plan comes.

    `check()` is called before every batch and raises Cancelled when the work should end.
    """

    def train(
        self,
        plan: Plan,
        weights: Tensors,
        examples: Examples,
        how: Train,
        check: Callable[[], None],
        progress: Progress | None = None,
    ) -> Outcome:
        """Train from `weights` as `how` says; raises UmbelError when plan, weights or examples do not fit.

        With `progress` a trainer may save where it is, and go on from what was saved: the outcome is the same, bit for bit.
        """

    def evaluate(self, plan: Plan, weights: Tensors, examples: Examples, check: Callable[[], None]) -> Sums:
        """The `per_example` sums of loss and metrics of `weights` over `examples`."""


def shuffles(seed: int, device: str) -> random.Random:
    """The generator that orders a device's examples: the same seed and device give the same orders.

    Python's own: NumPy's would add 2 MB to an agent.
    """
    return random.Random(f"{seed}/{device}")


def next_order(rng: random.Random, count: int) -> NDArray[np.intp]:
    """A permutation of `count` rows, intp[count]."""
    return np.array(rng.sample(range(count), count), np.intp)


def generator_of(rng: random.Random) -> NDArray[np.uint32]:
    """The generator's state, uint32[625]."""
    return np.array(rng.getstate()[1], np.uint32)


def set_generator(rng: random.Random, state: NDArray[np.uint32]) -> None:
    """Put the generator where `generator_of` found it; raises ValueError when it is no such state."""
    rng.setstate((3, tuple(state.tolist()), None))
