"""Evaluation of checkpoints on held-out examples, by several interpreters at once, and on devices' own."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.examples import Examples, batches
from umbel.litert import Trainable
from umbel.metrics import Sums, add, finite, per_example, results
from umbel.plan import TRAIN, Plan
from umbel.tensors import Tensors
from umbel_sim.fleet_data import Fleet, examples_of


class HeldOut:
    """Evaluates weights on `examples` with `plan`'s files, one share of them a worker.

    The shares do not depend on the number of workers, so neither do the sums. `plan` may be compiled for larger batches than
    the one that devices train with; its weights have the same names.
    """

    SHARES = 8

    def __init__(self, plan: Plan, examples: Examples, workers: int) -> None:
        self._plan, self._workers = plan, workers
        size = plan.manifest.batch_size
        cuts = np.linspace(0, -(-examples.count // size), self.SHARES + 1).astype(int) * size
        self._shares = [
            Examples(
                {name: tensor[start:stop] for name, tensor in examples.tensors.items()},
                min(stop, examples.count) - start,
            )
            for start, stop in pairwise(cuts)
            if start < min(stop, examples.count)
        ]
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="umbel-held-out")
        self._trainables = [Trainable(plan.read(TRAIN), plan.manifest) for _ in range(min(workers, len(self._shares)))]

    def __call__(self, weights: Tensors) -> dict[str, float]:
        """`loss` and the plan's metrics."""
        count = len(self._trainables)
        mine = [
            self._pool.submit(self._over, worker, range(worker, len(self._shares), count), weights)
            for worker in range(count)
        ]
        by_share = {share: sums for own in mine for share, sums in own.result().items()}
        total: Sums = {}
        for share in sorted(by_share):
            total = add(total, by_share[share])
        return finite(results(self._plan.manifest.metrics, per_example(total)))

    def _over(self, worker: int, shares: range, weights: Tensors) -> dict[int, Sums]:
        trainable = self._trainables[worker]
        trainable.set_weights(weights)
        return {
            share: trainable.evaluate(batches(self._shares[share], self._plan.manifest.batch_size)) for share in shares
        }

    def close(self) -> None:
        """End the workers."""
        self._pool.shutdown()


class OnDevices:
    """Evaluates weights on the examples that devices train on."""

    def __init__(self, plan: Plan, fleet: Fleet) -> None:
        self._plan, self._fleet = plan, fleet
        self._trainable = Trainable(plan.read(TRAIN), plan.manifest)

    def __call__(self, weights: Tensors, devices: list[int] | NDArray[Any]) -> list[dict[str, float]]:
        """`loss` and the plan's metrics of each device, and its `examples`."""
        self._trainable.set_weights(weights)
        manifest, found = self._plan.manifest, []
        for device in devices:
            examples = examples_of(
                self._fleet, int(device), {**manifest.inputs, **manifest.targets}, manifest.value_counts
            )
            sums = self._trainable.evaluate(batches(examples, self._plan.manifest.batch_size))
            metrics = finite(results(self._plan.manifest.metrics, per_example(sums)))
            found.append({**metrics, "examples": float(examples.count)})
        return found
