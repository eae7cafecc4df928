"""Workers in threads of this process: what they compute lets go of the interpreter lock."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from umbel_sim.engines import Done, Job


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Device(Protocol):
    """One device after another; used by one thread at a time."""

    def train(self, job: Job) -> Done:
        """The update of a job's device, whose examples are made here and dropped with it."""


class ThreadsEngine:
    """See umbel_sim.engines.Engine. Every worker has a device of its own from `make`."""

    def __init__(self, name: str, workers: int, make: Callable[[], Device]) -> None:
        self.name, self.workers, self._make = name, workers, make
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="umbel-sim")

    def submit(self, job: Job) -> "Future[Done]":
        """As Engine."""
        return self._pool.submit(self._train, job)

    def close(self) -> None:
        """As Engine."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _train(self, job: Job) -> Done:
        if not hasattr(self._own, "device"):
            self._own.device = self._make()
        device: Device = self._own.device
        return device.train(job)
