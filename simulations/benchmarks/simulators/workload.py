"""The workload of all simulators: the same virtual users, and one command line and one form of answer.

An engine is a script, `engine.py CASE ANSWER`: CASE is a Case as JSON, ANSWER the file for its answer. NumPy is all that
this file needs, because the engines run in different Python environments.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXAMPLES, BATCH, RATE = 50, 10, 0.1
CLASSES = 10
POOL = 1000
"""The number of users with different examples; user POOL has the examples of user 0 again."""

INPUTS: dict[str, tuple[int, ...]] = {"mlp": (784,), "mnist-cnn": (28, 28, 1)}
"""The models of umbel_sim.reference_models that are trained, with the shapes of their inputs."""


@dataclass(frozen=True)
class Case:
    """One measurement: `rounds` rounds of `cohort` of `devices` users each; `setting` chooses among an engine's own."""

    model: str
    devices: int
    cohort: int
    rounds: int
    setting: str = ""


@functools.cache
def _pool(model: str) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    rng = np.random.default_rng(0)
    x = rng.random((POOL * EXAMPLES, *INPUTS[model]), np.float32)
    return x, rng.integers(0, CLASSES, POOL * EXAMPLES, np.int32)


def examples(model: str, device: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """`x` float32[EXAMPLES, ...] and `y` int32[EXAMPLES] of a user: seeded random numbers, as views of arrays in memory."""
    x, y = _pool(model)
    start = device % POOL * EXAMPLES
    return x[start : start + EXAMPLES], y[start : start + EXAMPLES]


def cohorts(case: Case) -> list[list[int]]:
    """The users of each round, for the engines that do not choose them: seeded, none twice in a round."""
    rng = np.random.default_rng(1)
    return [rng.choice(case.devices, case.cohort, replace=False).tolist() for _ in range(case.rounds)]


class Clock:
    """Records the beginning of the training and the end of each round."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def tick(self) -> None:
        """Record the current time: first as the beginning, then as the end of each round."""
        self._times.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """The duration of each round in seconds."""
        return [after - before for before, after in pairwise(self._times)]


def check_weights(before: Sequence[NDArray[Any]], after: Sequence[NDArray[Any]]) -> None:
    """Raise RuntimeError unless the weights are finite, and all of them were trained."""
    for old, new in zip(before, after, strict=True):
        if not np.isfinite(new).all() or np.array_equal(old, new):
            raise RuntimeError(f"weights of shape {new.shape} should be finite and have changed")


def main(train: Callable[[Case], tuple[list[float], str]]) -> None:
    """Run an engine; `train` returns the seconds of each round, and a description of its settings."""
    case, answer = Case(**json.loads(sys.argv[1])), Path(sys.argv[2])
    seconds, setting = train(case)
    if len(seconds) != case.rounds:
        raise RuntimeError(f"{case.rounds} rounds should have ended, {len(seconds)} did")
    answer.write_text(json.dumps({"seconds": seconds, "setting": setting}))
