"""The agent's own trainer in threads: one LiteRT interpreter each, which lets go of the interpreter lock as it computes."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from umbel.plan import Plan
from umbel_edge.litert_trainer import LiteRTTrainer
from umbel_sim.engines import Done, Job, delta_of
from umbel_sim.fleet_data import Fleet, examples_of


class Device:
    """One interpreter that is one device after another; used by one thread at a time."""

    def __init__(self, plan: Plan, fleet: Fleet) -> None:
        self._plan, self._fleet = plan, fleet
        self._specs = {**plan.manifest.inputs, **plan.manifest.targets}
        self._trainer = LiteRTTrainer("")

    def train(self, job: Job) -> Done:
        """The update of a job's device, whose examples are made here and dropped with it."""
        self._trainer.device = job.name
        examples = examples_of(self._fleet, job.device, self._specs)
        outcome = self._trainer.train(self._plan, job.weights, examples, job.how, _go_on)
        return Done(delta_of(outcome.weights, job.weights), outcome.metrics, examples.count)


class LiteRTEngine:
    """See umbel_sim.engines.Engine."""

    name = "litert"

    def __init__(self, plan: Plan, fleet: Fleet, workers: int) -> None:
        self._plan, self._fleet, self.workers = plan, fleet, workers
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
            self._own.device = Device(self._plan, self._fleet)
        device: Device = self._own.device
        return device.train(job)


def _go_on() -> None:
    """Virtual devices are stopped in virtual time, before their training is computed."""
