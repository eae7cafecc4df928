"""Training with LiteRT, without TensorFlow: one interpreter for each plan."""

from collections.abc import Callable, Iterator

from umbel.examples import Batch, Examples, batches
from umbel.litert import Trainable
from umbel.messages import Train
from umbel.metrics import Sums, add, per_example
from umbel.plan import TRAIN, Plan
from umbel.tensors import Tensors, check
from umbel_edge.training.example_order import generator_of, next_order, set_generator, shuffles
from umbel_edge.training.saved_progress import SavedProgress, TrainingState
from umbel_edge.training.trainer import TrainingOutcome


class LiteRTTrainer:
    """See umbel_edge.training.trainer.Trainer."""

    def __init__(self, device: str, threads: int = 1) -> None:
        self.device, self._threads = device, threads
        self._prepared: tuple[str, Trainable] | None = None

    def train(
        self,
        plan: Plan,
        weights: Tensors,
        examples: Examples,
        how: Train,
        check_stop: Callable[[], None],
        progress: SavedProgress | None = None,
    ) -> TrainingOutcome:
        """Epochs of seeded shuffles in batches of the plan's size, the optimizer's slots at their start."""
        trainable = self._prepare(plan, weights)
        trainable.reset()
        if how.proximal_mu:
            progress = (
                None  # FedProx pulls to the weights that training begins with, and a saved state does not hold those
            )
        size = plan.manifest.batch_size
        rng = shuffles(how.seed, self.device)
        totals: Sums = {}
        steps = first_epoch = done = 0
        if progress is not None and (saved := progress.load()) is not None:
            trainable.set_weights(saved.weights)
            trainable.set_slots(saved.slots)
            totals, steps, first_epoch, done = saved.totals, saved.steps, saved.epoch, saved.batch
            set_generator(rng, saved.generator)
        for epoch in range(first_epoch, how.epochs):
            generator = generator_of(rng) if progress is not None else None
            order = next_order(rng, examples.count)
            for _ in range(done):
                rng.getrandbits(31)  # draw the seeds of the earlier batches again
            for number, batch in enumerate(batches(examples, size, order[done * size :]), done + 1):
                check_stop()
                seed = rng.getrandbits(31)
                totals = add(totals, trainable.train(batch, how.learning_rate, how.proximal_mu, seed))
                steps += 1
                if steps == how.max_steps:
                    return TrainingOutcome(trainable.get_weights(), per_example(totals))
                if progress is not None and generator is not None and progress.due():
                    weights_now, slots = trainable.get_weights(), trainable.get_slots()
                    progress.save(TrainingState(epoch, number, steps, weights_now, slots, totals, generator))
            done = 0
        return TrainingOutcome(trainable.get_weights(), per_example(totals))

    def evaluate(self, plan: Plan, weights: Tensors, examples: Examples, check_stop: Callable[[], None]) -> Sums:
        """Every example once, in order."""
        trainable = self._prepare(plan, weights)

        def checked() -> Iterator[Batch]:
            for batch in batches(examples, plan.manifest.batch_size):
                check_stop()
                yield batch

        return per_example(trainable.evaluate(checked()))

    def _prepare(self, plan: Plan, weights: Tensors) -> Trainable:
        check(weights, plan.manifest.weights, "the weights to start from")
        if self._prepared is None or self._prepared[0] != plan.sha256:
            self._prepared = None  # let go of the old interpreter before a second one takes memory
            self._prepared = plan.sha256, Trainable(plan.read(TRAIN), plan.manifest, self._threads)
        trainable = self._prepared[1]
        trainable.set_weights(weights)
        return trainable
