"""The agent's own trainer in Ray's actors: for simulations that outgrow one machine."""

import contextlib
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import PicklingError
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from umbel.errors import UmbelError
from umbel.messages import Train
from umbel.plan import TRAIN, Manifest, Plan
from umbel.tensors import Tensors
from umbel_sim.engines import Done, Job
from umbel_sim.engines.checkpoints import Checkpoints
from umbel_sim.engines.litert import LiteRTDevice
from umbel_sim.engines.ray_cluster import Cluster
from umbel_sim.fleet_data import Fleet

ATTEMPTS = 3
"""How often a job is given to a worker, when its worker dies, before the simulation gives up."""
BEGIN_SECONDS = 60.0
"""Longest time for a worker to begin: a cluster's other users may have its cores."""


@dataclass(frozen=True)
class Carried:
    """What a worker needs of a plan, without its file."""

    manifest: Manifest
    sha256: str
    train: bytes


class CarriedPlan(Plan):
    """A plan whose training graph came along."""

    def __init__(self, carried: Carried) -> None:
        super().__init__(Path(), carried.manifest, None, carried.sha256)
        self._train = carried.train

    def read(self, name: str) -> bytes:
        """The training graph; there is nothing else."""
        assert name == TRAIN
        return self._train


class Worker:
    """An actor: one interpreter, one job at a time. Plan, fleet and weights are read from its machine's object store."""

    def __init__(self, plan: Carried, fleet: Fleet) -> None:
        self._device = LiteRTDevice(CarriedPlan(plan), fleet)

    def ready(self) -> None:
        """Answer, once the worker has begun."""

    def train(self, device: int, name: str, weights: Tensors, how: Train) -> Done:
        """The update of one device."""
        return self._device.train(Job(device, name, weights, how))


class RayEngine:
    """See umbel_sim.engines.Engine. A worker that dies is replaced and its job begun again, three times in all.

    Raises UmbelError when the workers do not begin within a minute, or the fleet cannot be sent to them. The cluster is
    left on `close`, and when this fails.
    """

    name = "ray"

    def __init__(self, plan: Plan, fleet: Fleet, cluster: Cluster) -> None:
        self._cluster, self.workers = cluster, cluster.workers
        self._lock, self._closed = threading.Lock(), False
        self._actors: list[Any] = []
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="umbel-ray")
        self._checkpoints: Checkpoints[Any] = Checkpoints(ray.put)
        self._actor = ray.remote(num_cpus=1, max_restarts=0)(Worker)
        try:
            self._plan = ray.put(Carried(plan.manifest, plan.sha256, plan.read(TRAIN)))
            self._fleet = _put(fleet)
            self._wait([self._begin() for _ in range(self.workers)])
            for actor in self._actors:
                self._idle.put(actor)
        except BaseException:
            self.close()
            raise

    def submit(self, job: Job) -> "Future[Done]":
        """As Engine."""
        weights, release = self._checkpoints.use(job.weights)
        future = self._pool.submit(self._train, job, weights)
        future.add_done_callback(lambda _: release())
        return future

    def close(self) -> None:
        """As Engine; trainings under way are ended with their workers."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for actor in self._actors:
            with contextlib.suppress(RayError, RuntimeError):  # Ray may have ended before
                ray.kill(actor)
        self._pool.shutdown(wait=True)
        self._cluster.leave()

    def _begin(self) -> Any:
        with self._lock:
            if self._closed:
                raise UmbelError("the simulation has ended")
            actor = self._actor.remote(self._plan, self._fleet)
            self._actors.append(actor)
        return actor

    def _wait(self, actors: list[Any]) -> None:
        try:
            ray.get([actor.ready.remote() for actor in actors], timeout=BEGIN_SECONDS)
        except GetTimeoutError as error:
            raise UmbelError(
                f"{len(actors)} workers did not begin on the Ray at {self._cluster.address} in {BEGIN_SECONDS:.0f} seconds; "
                "lower --workers, or free some of its cores"
            ) from error
        except RayError as error:
            raise UmbelError(
                f"a worker could not begin on the Ray at {self._cluster.address}: {_last_line(error)}; its machines need the "
                "same umbel[sim,ray] as this one, and the modules of the fleet's functions"
            ) from error

    def _train(self, job: Job, weights: Any) -> Done:
        actor, reason = self._idle.get(), ""
        try:
            for _ in range(ATTEMPTS):
                try:
                    done: Done = ray.get(actor.train.remote(job.device, job.name, weights, job.how))
                except RayTaskError as error:
                    raise error.cause or error from None
                except RayError as error:
                    reason = _last_line(error)
                    actor = self._replaced(actor)
                else:
                    # What Ray gives are views of its object store, which has to be free for the next updates.
                    delta = {name: np.array(tensor) for name, tensor in done.delta.items()}
                    return replace(done, delta=delta)
        finally:
            self._idle.put(actor)
        raise UmbelError(
            f"the worker that trained {job.name} died {ATTEMPTS} times ({reason}); give workers more memory with a lower "
            "--workers, or look at the log of Ray; what was committed is kept"
        )

    def _replaced(self, dead: Any) -> Any:
        with self._lock:
            self._actors.remove(dead)
        with contextlib.suppress(RayError):
            ray.kill(dead)
        actor = self._begin()
        self._wait([actor])
        return actor


def _put(fleet: Fleet) -> Any:
    try:
        return ray.put(fleet)
    except (TypeError, PicklingError, AttributeError) as error:
        raise UmbelError(
            "the fleet cannot be sent to Ray's workers, its functions hold what cannot be pickled; make such things inside "
            "them, or take --engine litert"
        ) from error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
