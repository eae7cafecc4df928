"""Virtual devices whose whole training is one call of compiled code: for chains of common layers, several times as fast.

The arithmetic of an interpreter is general: every operation reads and writes memory. Here a device's weights are updated
where its gradients are computed, and a kernel keeps its sums in registers.
"""

import numpy as np

from umbel.metrics import Sums
from umbel.plan import Plan
from umbel.task import Task
from umbel.updates import Pipeline, empty_delta
from umbel_edge.training.example_order import next_order, shuffles
from umbel_sim.engines import Done, Job, done
from umbel_sim.engines.native.layers import Chain, chain_of
from umbel_sim.engines.native.library import WIDEST, Net
from umbel_sim.engines.threads import ThreadsEngine
from umbel_sim.fleet_data import Fleet, examples_of

NO_CLASS = 2**31 - 1
"""Larger labels are none of a model's classes either."""


class NativeDevice:
    """One net that is one device after another. See umbel_sim.engines.threads.Device."""

    def __init__(self, chain: Chain, plan: Plan, fleet: Fleet) -> None:
        self._chain, self._fleet, self._batch = chain, fleet, plan.manifest.batch_size
        self._specs = {**plan.manifest.inputs, **plan.manifest.targets}
        self._value_counts = plan.manifest.value_counts
        self._net, self._pipeline = Net(chain, self._batch, WIDEST), Pipeline(plan.manifest.weights)

    def train(self, job: Job) -> Done:
        """As Device."""
        how, chain = job.how, self._chain
        examples = examples_of(self._fleet, job.device, self._specs, self._value_counts)
        order = self._order(job, examples.count)
        delta = empty_delta(job.weights)
        classes = np.clip(examples.tensors[chain.y].reshape(-1), -1, NO_CLASS).astype(np.int32)
        loss, seen, right, squares = self._net.train(
            job.weights,
            delta,
            examples.tensors[chain.x],
            classes,
            order,
            how.max_steps,
            how.learning_rate,
            how.proximal_mu,
        )
        metrics: Sums = {"loss": loss / seen}
        if chain.accuracy:
            metrics[chain.accuracy] = right / seen
        return done(self._pipeline, job, delta, metrics, examples.count, squares)

    def _order(self, job: Job, count: int) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
        """The rows of every epoch that is trained, as a trainer shuffles them."""
        rng, batches = shuffles(job.how.seed, job.name), -(-count // self._batch)
        wanted = min(job.how.epochs, -(-job.how.max_steps // batches)) if job.how.max_steps else job.how.epochs
        order = np.empty((wanted, count), np.int64)
        for epoch in range(wanted):
            order[epoch] = next_order(rng, count)
            for _ in range(batches):
                rng.getrandbits(31)  # the seeds of a trainer's batches
        return order


def native_engine(task: Task, plan: Plan, fleet: Fleet, workers: int) -> ThreadsEngine:
    """Nets in `workers` threads; raises Unsupported when the task is no chain of layers that it knows."""
    chain = chain_of(task)
    Net(chain, 1, WIDEST)  # says now that it was not compiled
    return ThreadsEngine("native", workers, lambda: NativeDevice(chain, plan, fleet))
