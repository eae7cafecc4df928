"""Many devices in one compiled program: TensorFlow's XLA trains devices together, as one batch of small models.

It wins where a device's own arithmetic is too small to keep a core busy; a plan's interpreters win where it is not.
"""

import queue
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np

from umbel.examples import batches
from umbel.messages import Train
from umbel.metrics import per_example
from umbel.plan import Plan
from umbel.task import Task
from umbel.updates import Pipeline, difference
from umbel_edge.training.example_order import next_order, shuffles
from umbel_server.compiler.device_batch import DeviceBatch
from umbel_sim.engines import Done, Job, done
from umbel_sim.fleet_data import Fleet, examples_of

CLIENTS = 16
"""Devices in one program."""


class XLAEngine:
    """See umbel_sim.engines.Engine. `workers` are the devices that are trained at once, by one thread."""

    name = "xla"
    workers = CLIENTS

    def __init__(self, task: Task, plan: Plan, fleet: Fleet) -> None:
        self._plan, self._fleet = plan, fleet
        self._specs = {**plan.manifest.inputs, **plan.manifest.targets}
        self._batch, self._pipeline = DeviceBatch(task, CLIENTS), Pipeline(plan.manifest.weights)
        self._jobs: queue.SimpleQueue[tuple[Job, Future[Done]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="umbel-xla", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> "Future[Done]":
        """As Engine."""
        future: Future[Done] = Future()
        self._jobs.put((job, future))
        return future

    def close(self) -> None:
        """As Engine."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        left: tuple[Job, Future[Done]] | None = None
        while True:
            first = left or self._jobs.get()
            left = None
            if first is None:
                break
            together = [first]
            while len(together) < CLIENTS:
                try:
                    next_ = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if next_ is None or _kind(next_[0]) != _kind(first[0]):
                    left = next_
                    if next_ is None:
                        self._jobs.put(None)
                    break
                together.append(next_)
            self._train([own for own in together if own[1].set_running_or_notify_cancel()])

    def _train(self, together: list[tuple[Job, "Future[Done]"]]) -> None:
        if not together:
            return
        try:
            done = self._together([job for job, _ in together])
        except Exception as error:
            for _, future in together:
                future.set_exception(error)
            return
        for (_, future), own in zip(together, done, strict=True):
            future.set_result(own)

    def _together(self, jobs: list[Job]) -> list[Done]:
        how, base = jobs[0].how, jobs[0].weights
        courses = [self._course(job) for job in jobs]
        counts = [len(seeds) for _, _, seeds, _ in courses]
        # Programs are compiled for a number of steps: few numbers, few programs.
        steps = 1 << (max(counts) - 1).bit_length()
        size = self._plan.manifest.batch_size
        given = {name: np.zeros((CLIENTS, steps, size, *spec.shape), spec.dtype) for name, spec in self._specs.items()}
        rows, seeds = np.zeros((CLIENTS, steps, size), np.float32), np.zeros((CLIENTS, steps), np.int32)
        for client, (tensors, weights, own_seeds, _) in enumerate(courses):
            for name, batch in tensors.items():
                given[name][client, : counts[client]] = batch
            rows[client, : counts[client]] = weights
            seeds[client, : counts[client]] = own_seeds
        made = [*counts, *[0] * (CLIENTS - len(jobs))]
        trained = self._batch.train(base, given, rows, made, seeds, how.learning_rate, how.proximal_mu)
        found = []
        for job, (_, _, _, count), (after, sums) in zip(jobs, courses, trained, strict=False):
            # A weight that training does not change keeps its value.
            delta = difference({**base, **after}, base)
            found.append(done(self._pipeline, job, delta, per_example(sums), count))
        return found

    def _course(self, job: Job) -> tuple[dict[str, Any], Any, list[int], int]:
        """A device's batches in their order, their sample weights, their seeds, and its number of examples."""
        examples = examples_of(self._fleet, job.device, self._specs, self._plan.manifest.value_counts)
        size, rng = self._plan.manifest.batch_size, shuffles(job.how.seed, job.name)
        made, seeds = [], []
        for _ in range(job.how.epochs):
            for batch in batches(examples, size, next_order(rng, examples.count)):
                made.append(batch)
                seeds.append(rng.getrandbits(31))
                if len(made) == job.how.max_steps:
                    break
            if len(made) == job.how.max_steps:
                break
        tensors = {name: np.stack([batch.tensors[name] for batch in made]) for name in self._specs}
        return tensors, np.stack([batch.sample_weight for batch in made]), seeds, examples.count


def _kind(job: Job) -> tuple[int, float, float, int, int]:
    how: Train = job.how
    return id(job.weights), how.learning_rate, how.proximal_mu, how.epochs, how.max_steps
