"""`infer.tflite` and `infer.int8.tflite`: constant weights, and a map of where each weight's bytes lie."""

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from msgspec.structs import replace
from numpy.typing import NDArray
from tensorflow.lite.python import schema_py_generated as schema

from umbel.keras_import import native_stderr_silenced
from umbel.litert import Predictor
from umbel.placement import place, quantise
from umbel.plan import Placement
from umbel.task import Task
from umbel_server.compiler import CompileError
from umbel_server.compiler.keras_model import KerasParts
from umbel_server.compiler.noise import Noise
from umbel_server.compiler.parity import random_batch, relative_error
from umbel_server.compiler.reemit import key
from umbel_server.compiler.step import Traced
from umbel_server.compiler.tracing import all_layers, device_noise
from umbel_server.compiler.training_file import convert

Weights = Sequence[NDArray[Any]]

CHANNELS_OF_DENSE = (2, 17)
"""The first LiteRT that runs dense layers whose int8 weights have one scale a channel."""

_ALIKE = 1e-3
"""Relative difference of outputs that rounding explains."""


def convert_with(
    task: Task,
    parts: KerasParts,
    traced: Traced,
    weights: Weights,
    int8: bool,
    apart: frozenset[str] = frozenset(),
    channels: bool = False,
) -> bytes:
    """The inference file that the converter makes of `weights`; with `int8`, dynamic-range quantised.

    With `channels`, dense layers are quantised by channels, too, which older runtimes do not know (CHANNELS_OF_DENSE).

    The weights named in `apart` are kept as they are: what is computed from them alone is computed at run time.
    """
    module = tf.Module()
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

    module.infer = tf.function(infer, autograph=False)
    concrete = module.infer.get_concrete_function(**specs)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"infer": concrete})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["infer"])
        if int8:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter._experimental_disable_per_channel_quantization_for_dense_layers = not channels
        return convert(converter, task.name)


@dataclass(frozen=True)
class InferenceFile:
    """An inference file, its weight map, and the weights that had to be kept apart."""

    data: bytes
    placements: tuple[Placement, ...]
    apart: frozenset[str]


def inference_file(
    task: Task,
    parts: KerasParts,
    traced: Traced,
    int8: bool,
    apart: frozenset[str] | None = None,
    channels: bool = False,
) -> InferenceFile:
    """The file with the model's current weights, and its weight map.

    The map is found on a file made of random weights, whose bytes are told apart (equal ones share a buffer), and the
    current weights are placed by it. Weights that the converter folds into other tensors are kept apart: small ones
    first, because a batch norm's vectors set its convolution's kernel free. `apart` is what another file of the same
    model was found to need. Raises CompileError when a weight's bytes
    are not in the file.
    """
    rng = np.random.default_rng(0)
    probe = [_probe(rng, w) for w in parts.weights]
    current = {w.path: np.asarray(w.numpy()) for w in parts.weights}
    norms = _normalisers(parts)
    apart = norms & {w.path for w in parts.weights} if apart is None else apart
    while True:
        file = convert_with(task, parts, traced, probe, int8, apart, channels)
        found = {w.path: _find(file, w.path, value) for w, value in zip(parts.weights, probe, strict=True)}
        placements = tuple(placement for places in found.values() for placement in places)
        lost = {w.path: w for w in parts.weights if not found[w.path] and traced.infer.reads(key(w))}
        beside = norms - apart if lost else frozenset()
        small = frozenset(path for path, w in lost.items() if len(w.shape) <= 1) - apart
        more = beside or small or frozenset(lost) - apart
        if not lost:
            placed = place(file, current, placements)
            several = frozenset(w.path for w in parts.weights if traced.infer.reads(key(w)) > 1) - apart
            # A weight that is used twice may lie in the file as it is for one use, and folded for the other.
            if int8 or not several or _answers_as_keras(task, parts, placed):
                return InferenceFile(placed, placements, apart)
            more = several
        if not more:
            raise CompileError(
                f"weight {next(iter(lost))} is not in the inference file as it is: the converter folded it into another "
                "tensor; if the model does not use it for inference, remove it"
            )
        apart |= more


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


def _find(file: bytes, name: str, weight: NDArray[Any]) -> list[Placement]:
    """Every place where the weight lies: a shared layer's may lie there once for each way in which it is read."""
    base = np.frombuffer(file, np.uint8).__array_interface__["data"][0]
    model = schema.Model.GetRootAs(file, 0)
    graphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]
    tensors = [graph.Tensors(i) for graph in graphs for i in range(graph.TensorsLength())]
    places: dict[int, Placement] = {}
    for tensor in tensors:
        data = model.Buffers(tensor.Buffer()).DataAsNumpy()
        if not isinstance(data, np.ndarray):
            continue
        offset = int(data.__array_interface__["data"][0] - base)
        if offset not in places and (found := _match(base, name, tensor, data, weight)) is not None:
            places[offset] = found if found.scale_offset is None else _with_copies(base, tensors, tensor, found)
    return list(places.values())


def _with_copies(base: int, tensors: Sequence[Any], weight: Any, placement: Placement) -> Placement:
    """The placement with every other place of the weight's scales: on what is gathered from it."""
    scales = weight.Quantization().ScaleAsNumpy().tobytes()
    copies = []
    for tensor in tensors:
        quantization = tensor.Quantization()
        if quantization is None or quantization.ScaleLength() == 0:
            continue
        found = quantization.ScaleAsNumpy()
        offset = int(found.__array_interface__["data"][0] - base)
        if found.tobytes() == scales and offset != placement.scale_offset:
            copies.append(offset)
    return replace(placement, scale_copies=tuple(copies))


def _match(base: int, name: str, tensor: Any, data: Any, weight: NDArray[Any]) -> Placement | None:
    """How the weight lies in this tensor, if it does."""
    if data.nbytes not in (weight.nbytes, weight.size):
        return None
    offset = int(data.__array_interface__["data"][0] - base)
    for permutation in itertools.permutations(range(weight.ndim)):
        laid = np.ascontiguousarray(weight.transpose(permutation))
        kept = () if permutation == tuple(range(weight.ndim)) else permutation
        if data.nbytes == laid.nbytes and data.tobytes() == laid.tobytes():
            return Placement(name, offset, laid.nbytes, kept)
        if tensor.Type() == schema.TensorType.INT8 and weight.dtype == np.float32 and data.nbytes == laid.size:
            found = _find_quantised(base, name, tensor, data, laid, kept)
            if found is not None:
                return found
    return None


def _find_quantised(
    base: int, name: str, tensor: Any, data: Any, laid: NDArray[np.float32], permutation: tuple[int, ...]
) -> Placement | None:
    scales = tensor.Quantization().ScaleAsNumpy()
    axis = int(tensor.Quantization().QuantizedDimension()) if len(scales) > 1 else -1
    if axis >= laid.ndim:
        return None
    values, ours = quantise(laid, axis)
    if values.tobytes() != data.tobytes() or ours.tobytes() != scales.tobytes():
        return None
    offset = int(data.__array_interface__["data"][0] - base)
    scale_offset = int(scales.__array_interface__["data"][0] - base)
    return Placement(name, offset, data.nbytes, permutation, scale_offset, axis)
