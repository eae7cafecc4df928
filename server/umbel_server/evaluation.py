"""Held-out evaluation on the server, with the plan's own LiteRT files: no TensorFlow."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import UmbelError
from umbel.examples import Examples, batches
from umbel.litert import Predictor, Trainable
from umbel.metrics import per_example, results
from umbel.plan import TRAIN, Manifest, Plan
from umbel.tensors import Tensors

Array = NDArray[Any]


class HeldOut:
    """Evaluates checkpoints of one plan on `examples`; one a thread."""

    def __init__(self, plan: Plan, examples: Examples) -> None:
        self._plan = plan
        self._examples = examples
        self._trainable = Trainable(plan.read(TRAIN), plan.manifest)

    def __call__(self, weights: Tensors) -> dict[str, float]:
        """`loss` and the plan's metrics for `weights`."""
        self._trainable.set_weights(weights)
        manifest = self._plan.manifest
        sums = self._trainable.evaluate(batches(self._examples, manifest.batch_size))
        return results(manifest.metrics, per_example(sums))


def _accuracy(outputs: Array, targets: Array) -> float:
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        wanted = targets.argmax(axis=1) if targets.ndim == 2 and targets.shape[1] > 1 else targets.reshape(-1)
        return float(np.mean(outputs.argmax(axis=1) == wanted))
    return float(np.mean((outputs.reshape(-1) > 0.5) == (targets.reshape(-1) > 0.5)))


def _absolute(outputs: Array, targets: Array) -> float:
    return float(np.mean(np.abs(outputs.astype(np.float64) - targets)))


def _squared(outputs: Array, targets: Array) -> float:
    return float(np.mean(np.square(outputs.astype(np.float64) - targets)))


OUTPUT_METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": _accuracy,
    "sparse_categorical_accuracy": _accuracy,
    "categorical_accuracy": _accuracy,
    "mae": _absolute,
    "mean_absolute_error": _absolute,
    "mse": _squared,
    "mean_squared_error": _squared,
}


def evaluate_file(model: bytes, manifest: Manifest, examples: Examples) -> dict[str, float]:
    """The plan's metrics of an inference file, from its outputs: quantised files have no `evaluate` signature.

    Raises UmbelError when the plan has several outputs, which no release has yet.
    """
    if len(manifest.outputs) != 1 or len(manifest.targets) != 1:
        raise UmbelError(
            f"an inference file is evaluated on one output and one target; the plan has {len(manifest.outputs)} "
            f"and {len(manifest.targets)}"
        )
    predictor = Predictor(model)
    answers: Mapping[str, Array] = predictor({name: examples.tensors[name] for name in manifest.inputs})
    outputs, targets = next(iter(answers.values())), examples.tensors[next(iter(manifest.targets))]
    return {name: OUTPUT_METRICS[name](outputs, targets) for name in manifest.metric_names if name in OUTPUT_METRICS}
