"""The agent's own trainer in threads: one LiteRT interpreter each, which lets go of the interpreter lock as it computes."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from umbel.plan import Plan
from umbel_edge.litert_trainer import LiteRTTrainer
from umbel_sim.engines import Done, Job, delta_of
from umbel_sim.fleet_data import Fleet, examples_of


class LiteRTEngine:
    """See umbel_sim.engines.Engine. The examples of a device are made in the worker that trains it, and dropped with it."""

    name = "litert"

    def __init__(self, plan: Plan, fleet: Fleet, workers: int) -> None:
        self._plan, self._fleet, self.workers = plan, fleet, workers
        self._specs = {**plan.manifest.inputs, **plan.manifest.targets}
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="umbel-sim")

    def submit(self, job: Job) -> "Future[Done]":
        """As Engine."""
        return self._pool.submit(self._train, job)

    def close(self) -> None:
        """As Engine."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _train(self, job: Job) -> Done:
        if not hasattr(self._own, "trainer"):
            self._own.trainer = LiteRTTrainer("")
        trainer: LiteRTTrainer = self._own.trainer
        trainer.device = job.name
        examples = examples_of(self._fleet, job.device, self._specs)
        outcome = trainer.train(self._plan, job.weights, examples, job.how, _go_on)
        return Done(delta_of(outcome.weights, job.weights), outcome.metrics, examples.count)


def _go_on() -> None:
    """Virtual devices are stopped in virtual time, before their training is computed."""
