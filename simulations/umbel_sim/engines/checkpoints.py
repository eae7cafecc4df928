"""The weights that jobs train from, in a store that workers read: put there once, however many jobs there are."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from umbel.tensors import Tensors

Ref = TypeVar("Ref")


@dataclass(eq=False)
class _Stored(Generic[Ref]):
    weights: Tensors
    ref: Ref
    jobs: int


class Checkpoints(Generic[Ref]):
    """References to weights that `put` has stored: to the newest ones, and to those that a job is still training from.

    Weights are told apart by identity: a checkpoint's are one object, which nobody changes.
    """

    def __init__(self, put: Callable[[Tensors], Ref]) -> None:
        self._put = put
        self._stored: list[_Stored[Ref]] = []
        self._lock = threading.Lock()

    def use(self, weights: Tensors) -> tuple[Ref, Callable[[], None]]:
        """A reference to `weights` for one job, and what to call when that is done."""
        with self._lock:
            found = next((stored for stored in self._stored if stored.weights is weights), None)
            if found is None:
                found = _Stored(weights, self._put(weights), 0)
                self._stored = [stored for stored in self._stored if stored.jobs] + [found]
            found.jobs += 1
        return found.ref, lambda: self._release(found)

    def _release(self, stored: _Stored[Ref]) -> None:
        with self._lock:
            stored.jobs -= 1
            if not stored.jobs and stored is not self._stored[-1]:
                self._stored.remove(stored)
