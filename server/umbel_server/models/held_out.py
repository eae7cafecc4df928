"""Held-out evaluation on the server, with the plan's own LiteRT files: no TensorFlow."""

from umbel.examples import Examples, batches
from umbel.litert import Trainable
from umbel.metrics import Sums, per_example, results
from umbel.plan import TRAIN, Plan
from umbel.tensors import Tensors

HELD_OUT = "the held-out examples"
"""The name of held-out examples in errors."""


class HeldOut:
    """Evaluates checkpoints of one plan on `examples`; one a thread."""

    def __init__(self, plan: Plan, examples: Examples) -> None:
        self._manifest = plan.manifest
        self._examples = examples
        self._trainable = Trainable(plan.read(TRAIN), plan.manifest)

    def __call__(self, weights: Tensors) -> dict[str, float]:
        """`loss` and the plan's metrics for `weights`."""
        self._trainable.set_weights(weights)
        return self._results(self._trainable.evaluate(batches(self._examples, self._manifest.batch_size)))

    def score(self, outputs: Tensors) -> dict[str, float]:
        """`loss` and the plan's metrics for what an inference file answers to the examples, one row each.

        A loss with a regulariser takes it from the weights of the last call. Empty when the plan cannot tell: it was
        compiled by an older Umbel, or its loss or metrics depend on masks or losses inside the model.
        """
        if not self._trainable.scores:
            return {}
        answers = {f"o{i}": outputs[name] for i, name in enumerate(self._manifest.outputs)}
        targets = {name: self._examples.tensors[name] for name in self._manifest.targets}
        rows = batches(Examples({**answers, **targets}, self._examples.count), self._manifest.batch_size)
        return self._results(self._trainable.score(rows))

    def _results(self, sums: Sums) -> dict[str, float]:
        return results(self._manifest.metrics, per_example(sums))
