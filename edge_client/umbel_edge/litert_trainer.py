"""Training on LiteRT: no TensorFlow, one interpreter a plan."""

from collections.abc import Callable

from umbel.examples import Examples, batches
from umbel.litert import Trainable
from umbel.messages import Train
from umbel.metrics import Sums, add, per_example
from umbel.plan import TRAIN, Plan
from umbel.tensors import Tensors, check
from umbel_edge.trainers import Outcome, next_order, shuffles


class LiteRTTrainer:
    """See umbel_edge.trainers.Trainer."""

    def __init__(self, device: str, threads: int = 1) -> None:
        self._device, self._threads = device, threads
        self._prepared: tuple[str, Trainable] | None = None

    def train(
        self, plan: Plan, weights: Tensors, examples: Examples, how: Train, check_stop: Callable[[], None]
    ) -> Outcome:
        """Epochs of seeded shuffles in batches of the plan's size, the optimizer's slots at their start."""
        trainable = self._prepare(plan, weights)
        trainable.reset()
        totals: Sums = {}
        steps = 0
        rng = shuffles(how.seed, self._device)
        for _ in range(how.epochs):
            for batch in batches(examples, plan.manifest.batch_size, next_order(rng, examples.count)):
                check_stop()
                seed = rng.getrandbits(31)
                totals = add(totals, trainable.train(batch, how.learning_rate, how.proximal_mu, seed))
                steps += 1
                if steps == how.max_steps:
                    return Outcome(trainable.get_weights(), per_example(totals))
        return Outcome(trainable.get_weights(), per_example(totals))

    def evaluate(self, plan: Plan, weights: Tensors, examples: Examples, check_stop: Callable[[], None]) -> Sums:
        """Every example once, in order."""
        trainable = self._prepare(plan, weights)
        check_stop()
        return per_example(trainable.evaluate(batches(examples, plan.manifest.batch_size)))

    def _prepare(self, plan: Plan, weights: Tensors) -> Trainable:
        check(weights, plan.manifest.weights, "the weights to start from")
        if self._prepared is None or self._prepared[0] != plan.sha256:
            self._prepared = None  # let go of the old interpreter before a second one takes memory
            self._prepared = plan.sha256, Trainable(plan.read(TRAIN), plan.manifest, self._threads)
        trainable = self._prepared[1]
        trainable.set_weights(weights)
        return trainable
