"""`infer.tflite` and `infer.int8.tflite`: constant weights, and a map of where each weight's bytes lie."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.lite.python import schema_py_generated as schema

from umbel.placement import place, quantise
from umbel.plan import Placement
from umbel.task import Task
from umbel_server.compiler import CompileError
from umbel_server.compiler.keras_model import KerasParts
from umbel_server.compiler.reemit import reemit
from umbel_server.compiler.step import Traced
from umbel_server.compiler.training_file import convert

Weights = Sequence[NDArray[np.float32]]


def convert_with(task: Task, parts: KerasParts, traced: Traced, weights: Weights, int8: bool) -> bytes:
    """The inference file that the converter makes of `weights`; with `int8`, dynamic-range quantised."""
    ((name, spec),) = task.input_specs.items()
    module = tf.Module()

    def infer(**given: Any) -> dict[str, Any]:
        (outputs,) = reemit(traced.outputs, [*(tf.constant(w) for w in weights), given[name]])
        return {next(iter(parts.outputs)): outputs}

    module.infer = tf.function(infer)
    concrete = module.infer.get_concrete_function(**{name: tf.TensorSpec((None, *spec.shape), spec.dtype, name)})
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"infer": concrete})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["infer"])
        if int8:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        return convert(converter, task.name)


def inference_file(task: Task, parts: KerasParts, traced: Traced, int8: bool) -> tuple[bytes, tuple[Placement, ...]]:
    """The file with the model's current weights, and its weight map.

    The map is found on a file made of random weights, whose bytes are told apart (equal ones share a buffer), and the
    current weights are placed by it. Raises CompileError when a weight's bytes are not in the file.
    """
    rng = np.random.default_rng(0)
    probe = [rng.uniform(-1, 1, tuple(w.shape)).astype(np.float32) for w in parts.weights]
    file = convert_with(task, parts, traced, probe, int8)
    placements = tuple(_find(file, w.path, value) for w, value in zip(parts.weights, probe, strict=True))
    current = {w.path: np.asarray(w.numpy(), np.float32) for w in parts.weights}
    return place(file, current, placements), placements


def _find(file: bytes, name: str, weight: NDArray[np.float32]) -> Placement:
    base = np.frombuffer(file, np.uint8).__array_interface__["data"][0]
    model = schema.Model.GetRootAs(file, 0)
    for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
        for tensor in (graph.Tensors(i) for i in range(graph.TensorsLength())):
            data = model.Buffers(tensor.Buffer()).DataAsNumpy()
            if not isinstance(data, np.ndarray):
                continue
            offset = int(data.__array_interface__["data"][0] - base)
            for permutation in itertools.permutations(range(weight.ndim)):
                laid = np.ascontiguousarray(weight.transpose(permutation))
                kept = () if permutation == tuple(range(weight.ndim)) else permutation
                if data.nbytes == laid.nbytes and data.tobytes() == laid.tobytes():
                    return Placement(name, offset, laid.nbytes, kept)
                if tensor.Type() == schema.TensorType.INT8 and data.nbytes == laid.size:
                    found = _find_quantised(file, base, name, tensor, data, laid, kept)
                    if found is not None:
                        return found
    raise CompileError(
        f"weight {name} is not in the inference file as it is: the converter folded it into another tensor"
    )


def _find_quantised(
    file: bytes, base: int, name: str, tensor: Any, data: Any, laid: NDArray[np.float32], permutation: tuple[int, ...]
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
