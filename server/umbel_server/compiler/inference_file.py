"""`infer.tflite` and `infer.int8.tflite`: constant weights, and a map of where each weight's bytes lie."""

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
"""The first LiteRT that runs dense layers whose int8 weights have one scale a channel."""

_ALIKE = 1e-3
"""Relative difference of outputs that rounding explains."""


def saved_model(
    task: Task, parts: KerasParts, traced: Traced, weights: Weights, folder: Path, apart: frozenset[str] = frozenset()
) -> Path:
    """Save the model for inference with constant `weights` in `folder`, to be converted.

    The weights named in `apart` are kept as they are: what is computed from them alone is computed at run time.
    """
    held = [*zip(parts.weights, weights, strict=True), *((w, np.asarray(w.numpy())) for w in parts.constants)]
    specs = {name: tf.TensorSpec((None, *spec.shape), spec.dtype, name) for name, spec in task.input_specs.items()}

    def infer(**given: Any) -> dict[str, Any]:
        # Zero, but the converter cannot know it: the number of rows is open.
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
    """The TFLite file of a saved model; with `int8`, dynamic-range quantised.

    With `channels`, dense layers are quantised by channels, too, which older runtimes do not know (CHANNELS_OF_DENSE).
    """
    flags = {
        "post_training_quantize": True,
        "enable_mlir_dynamic_range_quantizer": True,
        "disable_per_channel_quantization_for_dense_layers": not channels,
    }
    return convert(folder, ["infer"], task.name, **(flags if int8 else {}))


@dataclass(frozen=True)
class InferenceFile:
    """An inference file, its weight map, and the weights that had to be kept apart in it."""

    data: bytes
    placements: tuple[Placement, ...]
    apart: frozenset[str]


class InferenceFiles:
    """Makes both inference files of a model from its current weights, in a temporary folder; a context manager.

    A weight map is found on a file made of random weights, whose bytes are told apart (equal ones share a buffer), and
    the current weights are placed by it. Weights that the converter folds into other tensors are kept apart: small ones
    first, because a batch norm's vectors set its convolution's kernel free. What one file was found to need, the next
    one starts from.
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
        """One of the files; raises CompileError when a weight's bytes are not in it."""
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
                # A weight that is used twice may lie in the file as it is for one use, and folded for the other.
                if int8 or not several or _answers_as_keras(self._task, self._parts, placed):
                    return InferenceFile(placed, placements, self._apart)
                more = several
            if not more:
                raise CompileError(
                    f"weight {next(iter(lost))} is not in the inference file as it is: the converter folded it into another "
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
    with native_stderr_silenced():  # LiteRT announces its delegate
        ours = Predictor(file)(x)
    with device_noise(Noise(tf.constant(0), task.batch_size)):
        theirs = parts.call({name: tf.constant(value) for name, value in x.items()}, training=False)
    return all(relative_error(ours[name], np.asarray(value)) <= _ALIKE for name, value in theirs.items())


def _normalisers(parts: KerasParts) -> frozenset[str]:
    """The vectors of batch norms, which the converter is known to fold into the convolution before them."""
    norms = [layer for layer in all_layers(parts.model) if isinstance(layer, keras.layers.BatchNormalization)]
    return frozenset(weight.path for layer in norms for weight in layer.weights)


def _from(value: Any, start: Any) -> Any:
    """All of `value`, gathered from row `start` on."""
    rows = tf.reshape(value, [1]) if value.shape.rank == 0 else value
    return tf.reshape(tf.gather(rows, tf.range(int(rows.shape[0])) + start), value.shape)


def _probe(rng: np.random.Generator, weight: Any) -> NDArray[Any]:
    shape = tuple(int(n) for n in weight.shape)
    if not str(weight.dtype).startswith("float"):
        return rng.integers(1, 2**30, shape).astype(str(weight.dtype))
    # Positive: a variance is among them, and what is computed of a negative one is NaN. Each up to a largest value of
    # its own: that is the int8 weight's scale, by which its copies are found.
    return rng.uniform(0.1, rng.uniform(0.5, 1.0), shape).astype(np.float32)
