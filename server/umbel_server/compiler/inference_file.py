"""`infer.tflite` and `infer.int8.tflite`: files with constant weights, and a map of the places of each weight's bytes."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from umbel.keras_import import native_stderr_silenced
from umbel.litert import Predictor
from umbel.placement import place
from umbel.plan import Placement
from umbel.task import Task
from umbel_server.compiler.converter import convert
from umbel_server.compiler.errors import CompileError
from umbel_server.compiler.keras_model import KerasParts
from umbel_server.compiler.noise import Noise
from umbel_server.compiler.parity import random_batch, relative_error
from umbel_server.compiler.reemit import key
from umbel_server.compiler.step import Traced
from umbel_server.compiler.tracing import all_layers, device_noise
from umbel_server.compiler.weight_map import constants, places

Weights = Sequence[NDArray[Any]]

CHANNELS_OF_DENSE = (2, 17)
"""The first version of LiteRT that runs dense layers whose int8 weights have one scale for each channel."""

_ALIKE = 1e-3
"""The largest relative difference of outputs that counts as rounding."""


def saved_model(
    task: Task, parts: KerasParts, traced: Traced, weights: Weights, folder: Path, apart: frozenset[str] = frozenset()
) -> Path:
    """Save the model for inference with constant `weights` in `folder`, as a SavedModel for the converter.

    The converter must not fold the weights named in `apart` into other constants, so the model reads them by an index that
    the converter cannot know.
    """
    held = [*zip(parts.weights, weights, strict=True), *((w, np.asarray(w.numpy())) for w in parts.constants)]
    specs = {name: tf.TensorSpec((None, *spec.shape), spec.dtype, name) for name, spec in task.input_specs.items()}

    def infer(**given: Any) -> dict[str, Any]:
        # Always zero, but the converter does not know that, because the number of rows is not fixed.
        zero = tf.minimum(tf.shape(next(iter(given.values())))[0], 0)
        values = {
            key(w): _from(tf.constant(value), zero) if w.path in apart else tf.constant(value) for w, value in held
        }
        outputs, _ = traced.infer([given[name] for name in sorted(given)], values)
        return dict(zip(parts.outputs, outputs, strict=True))

    module = tf.Module()
    module.infer = tf.function(infer, autograph=False)
    tf.saved_model.save(module, str(folder), signatures={"infer": module.infer.get_concrete_function(**specs)})
    return folder


def converted(task: Task, folder: Path, int8: bool, channels: bool = False) -> bytes:
    """Convert a saved model to a TFLite file; with `int8`, with dynamic-range quantisation.

    With `channels`, dense layers also get one scale for each channel, which needs a runtime from CHANNELS_OF_DENSE on.
    """
    flags = {
        "post_training_quantize": True,
        "enable_mlir_dynamic_range_quantizer": True,
        "disable_per_channel_quantization_for_dense_layers": not channels,
    }
    return convert(folder, ["infer"], task.name, **(flags if int8 else {}))


@dataclass(frozen=True)
class InferenceFile:
    """An inference file, its weight map, and the names of the weights that were kept from folding (see `saved_model`)."""

    data: bytes
    placements: tuple[Placement, ...]
    apart: frozenset[str]


class InferenceFiles:
    """Makes both inference files of a model from its current weights, in a temporary folder; a context manager.

    The weight map is found on a file with random weights, because equal weights would share a buffer. Then the current
    weights are placed by the map. Weights that the converter folds into other tensors are kept apart, and the file is made
    again. Small weights come first: with a batch norm's vectors kept apart, its convolution's kernel is not folded either.
    The second file starts with the weights that the first one had to keep apart.
    """

    def __init__(self, task: Task, parts: KerasParts, traced: Traced) -> None:
        self._task, self._parts, self._traced = task, parts, traced
        rng = np.random.default_rng(0)
        self._probe = [_probe(rng, w) for w in parts.weights]
        self._current = {w.path: np.asarray(w.numpy()) for w in parts.weights}
        self._apart = _normalisers(parts) & set(self._current)
        self._folder = tempfile.TemporaryDirectory()
        self._saved: dict[frozenset[str], Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def make(self, int8: bool, channels: bool = False) -> InferenceFile:
        """Make one of the files; raises CompileError when a weight's bytes cannot be found in it."""
        weights, infer = self._parts.weights, self._traced.infer
        while True:
            file = converted(self._task, self._saved_model(), int8, channels)
            held = constants(file)
            found = {w.path: places(held, w.path, value) for w, value in zip(weights, self._probe, strict=True)}
            placements = tuple(placement for each in found.values() for placement in each)
            lost = {w.path: w for w in weights if not found[w.path] and infer.reads(key(w))}
            small = frozenset(path for path, w in lost.items() if len(w.shape) <= 1)
            more = (small - self._apart) or (frozenset(lost) - self._apart)
            if not lost:
                placed = place(file, self._current, placements)
                several = frozenset(w.path for w in weights if infer.reads(key(w)) > 1) - self._apart
                # A weight that is used twice may lie in the file unchanged for one use, and folded for the other.
                if int8 or not several or _answers_as_keras(self._task, self._parts, placed):
                    return InferenceFile(placed, placements, self._apart)
                more = several
            if not more:
                raise CompileError(
                    f"weight {next(iter(lost))} cannot be found in the inference file: the converter folded it into another "
                    "tensor; if the model does not use it for inference, remove it"
                )
            self._apart |= more

    def _saved_model(self) -> Path:
        if self._apart not in self._saved:
            folder = Path(self._folder.name) / str(len(self._saved))
            self._saved[self._apart] = saved_model(
                self._task, self._parts, self._traced, self._probe, folder, self._apart
            )
        return self._saved[self._apart]


def _answers_as_keras(task: Task, parts: KerasParts, file: bytes) -> bool:
    x, _ = random_batch(task, parts, np.random.default_rng(4))
    with native_stderr_silenced():  # LiteRT prints a line about its delegate
        ours = Predictor(file)(x)
    with device_noise(Noise(tf.constant(0), task.batch_size)):
        theirs = parts.call({name: tf.constant(value) for name, value in x.items()}, training=False)
    return all(relative_error(ours[name], np.asarray(value)) <= _ALIKE for name, value in theirs.items())


def _normalisers(parts: KerasParts) -> frozenset[str]:
    """The paths of all batch norms' vectors, which the converter folds into the convolution before them."""
    norms = [layer for layer in all_layers(parts.model) if isinstance(layer, keras.layers.BatchNormalization)]
    return frozenset(weight.path for layer in norms for weight in layer.weights)


def _from(value: Any, start: Any) -> Any:
    """The whole of `value`, gathered from row `start` on; the converter does not know that `start` is 0."""
    rows = tf.reshape(value, [1]) if value.shape.rank == 0 else value
    return tf.reshape(tf.gather(rows, tf.range(int(rows.shape[0])) + start), value.shape)


def _probe(rng: np.random.Generator, weight: Any) -> NDArray[Any]:
    shape = tuple(int(n) for n in weight.shape)
    if not str(weight.dtype).startswith("float"):
        return rng.integers(1, 2**30, shape).astype(str(weight.dtype))
    # Positive, because a variance may be among them, and a negative variance gives NaN. Every weight has its own largest
    # value, and so its own scale in int8, by which copies of the scale are found.
    return rng.uniform(0.1, rng.uniform(0.5, 1.0), shape).astype(np.float32)
