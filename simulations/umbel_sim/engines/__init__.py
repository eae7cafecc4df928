"""Engines train virtual devices: they take jobs and give updates, as many at once as they have workers."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from umbel.messages import Train
from umbel.metrics import Sums
from umbel.tensors import Tensors
from umbel.updates import Pipeline, Training
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
    """The update of a virtual device: the weight delta as the server decodes it, `per_example` sums of metrics, its examples.

    `squares` is the sum of the delta's squares, which a worker computes while the delta is in its cache.
    """

    delta: Tensors
    metrics: Sums
    examples: int
    squares: float


def done(
    pipeline: Pipeline, job: Job, delta: Tensors, metrics: Sums, examples: int, squares: float | None = None
) -> Done:
    """The update of a job's device, whose delta went through both halves of `pipeline`; nothing is copied without steps.

    `squares` is the sum of squares of `delta` where training computed it.
    """
    training = Training(job.weights, examples, f"{job.how.seed}/{job.name}")
    decoded = pipeline.undo(pipeline.apply(delta, training))
    if squares is None or not pipeline.is_plain:
        squares = squares_of(decoded, 1)
    return Done(decoded, metrics, examples, squares)


class Engine(Protocol):
    """Workers that compute the update of a job as a real device computes it."""

    name: str
    workers: int

    def submit(self, job: Job) -> "Future[Done]":
        """Begin a job as soon as a worker is free; jobs are begun in the order in which they came."""

    def close(self) -> None:
        """End the workers; jobs that did not begin are dropped."""
