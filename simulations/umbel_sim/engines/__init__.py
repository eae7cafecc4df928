"""What trains virtual devices: jobs in, updates out, as many at once as there are workers."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from umbel.messages import Train
from umbel.metrics import Sums
from umbel.tensors import Tensors


@dataclass(frozen=True)
class Job:
    """One assignment: virtual device number `device`, called `name`, trains from `weights` as `how` says."""

    device: int
    name: str
    weights: Tensors
    how: Train


@dataclass(frozen=True)
class Done:
    """What a device would send: the weight delta by name, `per_example` sums of loss and metrics, its examples."""

    delta: Tensors
    metrics: Sums
    examples: int


def delta_of(after: Mapping[str, NDArray[Any]], before: Tensors) -> Tensors:
    """What a device sends: after - before, one tensor after the other in memory as in a file, which is read fastest."""
    file = np.empty(sum(weight.nbytes for weight in before.values()), np.uint8)
    delta, end = {}, 0
    for name in sorted(before):
        weight = before[name]
        delta[name] = file[end : end + weight.nbytes].view(weight.dtype).reshape(weight.shape)
        np.subtract(after[name], weight, out=delta[name])
        end += weight.nbytes
    return delta


class Engine(Protocol):
    """Workers that make of a job the update that a real device makes of it."""

    name: str
    workers: int

    def submit(self, job: Job) -> "Future[Done]":
        """Begin a job as soon as a worker is free; jobs are begun in the order in which they came."""

    def close(self) -> None:
        """End the workers; jobs that were not begun are dropped."""
