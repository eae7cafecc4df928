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
from umbel_server.aggregation.vetting import squares_of


@dataclass(frozen=True)
class Job:
    """One assignment: virtual device number `device`, called `name`, trains from `weights` as `how` says."""

    device: int
    name: str
    weights: Tensors
    how: Train


@dataclass(frozen=True)
class Done:
    """What a device would send: the weight delta by name, `per_example` sums of loss and metrics, its examples.

    `squares` is the sum of the delta's squares, which a worker computes while the delta is in its cache.
    """

    delta: Tensors
    metrics: Sums
    examples: int
    squares: float


def done(delta: Tensors, metrics: Sums, examples: int) -> Done:
    """What a worker makes of a trained device."""
    return Done(delta, metrics, examples, squares_of(delta, 1))


def empty_delta(weights: Tensors) -> Tensors:
    """Tensors like `weights`, one after the other in memory as in a file, which is read fastest; not set."""
    file = np.empty(sum(weight.nbytes for weight in weights.values()), np.uint8)
    delta, end = {}, 0
    for name in sorted(weights):
        weight = weights[name]
        delta[name] = file[end : end + weight.nbytes].view(weight.dtype).reshape(weight.shape)
        end += weight.nbytes
    return delta


def delta_of(after: Mapping[str, NDArray[Any]], before: Tensors) -> Tensors:
    """What a device sends: after - before."""
    delta = empty_delta(before)
    for name, difference in delta.items():
        np.subtract(after[name], before[name], out=difference)
    return delta


class Engine(Protocol):
    """Workers that make of a job the update that a real device makes of it."""

    name: str
    workers: int

    def submit(self, job: Job) -> "Future[Done]":
        """Begin a job as soon as a worker is free; jobs are begun in the order in which they came."""

    def close(self) -> None:
        """End the workers; jobs that were not begun are dropped."""
