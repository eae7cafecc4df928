"""Half-finished training in a file, so that a device that was switched off continues where it was."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from umbel.atomic import open_atomically
from umbel.examples import NOT_NPZ
from umbel.metrics import Sums
from umbel.tensors import Tensors
from umbel_edge.device.full_storage import is_full

log = logging.getLogger("umbel.agent")

SHARE = 0.05
"""Saving takes at most this share of the time: a slow save makes the next one later."""


@dataclass(frozen=True)
class TrainingState:
    """Training after `batch` batches of epoch number `epoch` (from 0) and `steps` steps in all.

    `slots` are the optimizer's. `generator` is the state of the random generator before the epoch's order was drawn,
    uint32[625]: from there the order and the seeds of the batches are drawn again.
    """

    epoch: int
    batch: int
    steps: int
    weights: Tensors
    slots: Tensors
    totals: Sums
    generator: NDArray[np.uint32]


class SavedProgress:
    """The saved state of one assignment's training, in one file.

    `identity` stands for everything that the result depends on; progress saved with another identity is removed, not used.
    Progress is saved at most once in `seconds` (0: never).
    """

    def __init__(self, path: Path, identity: str, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._identity, self._pause, self._clock = path, identity, seconds, clock
        self._started = self._saved = clock()
        self._before = 0.0

    @property
    def seconds(self) -> float:
        """Seconds that the training has taken, including the time before restarts."""
        return self._before + self._clock() - self._started

    def load(self) -> TrainingState | None:
        """The saved state; None when there is none, or it cannot be used."""
        if not self._path.exists():
            return None
        try:
            with np.load(self._path, allow_pickle=False) as archive:
                # Reading a member checks its CRC-32.
                found = {name: archive[name] for name in archive.files}
            if str(found["identity"]) != self._identity:
                raise ValueError("it belongs to another assignment, or the examples or the agent have changed")
            epoch, batch, steps = (int(n) for n in found["position"])
            self._before = float(found["seconds"])
            halfway = TrainingState(
                epoch,
                batch,
                steps,
                _named("weight:", found),
                _named("slot:", found),
                {name: value.tolist() for name, value in _named("total:", found).items()},
                found["generator"],
            )
        except NOT_NPZ as error:
            log.info("saved training progress is not used: %s", error)
            self.remove()
            return None
        log.info("training continues after epoch %d, batch %d (%d steps)", halfway.epoch, halfway.batch, halfway.steps)
        return halfway

    def due(self) -> bool:
        """Whether it is time to save."""
        return self._pause > 0 and self._clock() - self._saved >= self._pause

    def save(self, halfway: TrainingState) -> None:
        """Save atomically: after a crash the file holds this state or the one before. On full storage, saving ends."""
        began = self._clock()
        arrays: Tensors = {f"weight:{name}": value for name, value in halfway.weights.items()}
        arrays |= {f"slot:{name}": value for name, value in halfway.slots.items()}
        arrays |= {f"total:{name}": np.asarray(value, np.float64) for name, value in halfway.totals.items()}
        arrays["identity"] = np.array(self._identity)
        arrays["position"] = np.array([halfway.epoch, halfway.batch, halfway.steps], np.int64)
        arrays["seconds"] = np.array(self.seconds)
        arrays["generator"] = halfway.generator
        try:
            with open_atomically(self._path) as file:
                np.savez(file, allow_pickle=False, **arrays)
        except OSError as error:
            if not is_full(error):
                raise
            log.warning(
                "training progress cannot be saved (%s); it is not saved any more", os.strerror(error.errno or 0)
            )
            self.remove()
            self._pause = 0.0
        self._saved = self._clock()
        self._pause = max(self._pause, (self._saved - began) / SHARE) if self._pause else 0.0

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


def _named(prefix: str, found: Tensors) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
