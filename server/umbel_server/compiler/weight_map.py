"""Where a weight's bytes lie in an inference file, and how they are laid out there."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorflow.lite.python import schema_py_generated as schema

from umbel.placement import quantise
from umbel.plan import Placement

_TELLING = 8
"""A weight's first elements, which tell most constants from it."""


@dataclass(frozen=True)
class Constant:
    """A file's constant: where its bytes begin, and when it is int8 its scales, where these begin, and their axis."""

    offset: int
    data: NDArray[np.uint8]
    scales: NDArray[np.float32] | None
    scale_offset: int
    axis: int


Constants = dict[int, list[Constant]]
"""By their number of bytes."""


def constants(file: bytes) -> Constants:
    """The constants of a TFLite file, once each."""
    base = _address(np.frombuffer(file, np.uint8))
    model = schema.Model.GetRootAs(file, 0)
    found: dict[int, Constant] = {}
    for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
        for tensor in (graph.Tensors(i) for i in range(graph.TensorsLength())):
            data = model.Buffers(tensor.Buffer()).DataAsNumpy()
            if isinstance(data, np.ndarray):
                found.setdefault(_address(data) - base, _constant(base, tensor, data))
    sizes: Constants = {}
    for constant in found.values():
        sizes.setdefault(constant.data.nbytes, []).append(constant)
    return sizes


def places(held: Constants, name: str, weight: NDArray[Any]) -> list[Placement]:
    """Every place where the weight lies: a shared layer's may lie there once for each way in which it is read."""
    found: dict[int, Placement] = {}
    for permutation in itertools.permutations(range(weight.ndim)):
        turned = weight.transpose(permutation)
        for constant in _alike(held, turned):
            if constant.offset not in found:
                kept = () if permutation == tuple(range(weight.ndim)) else permutation
                scaled = (constant.scale_offset, constant.axis) if constant.scales is not None else ()
                found[constant.offset] = Placement(name, constant.offset, constant.data.nbytes, kept, *scaled)
    return list(found.values())


def _constant(base: int, tensor: Any, data: NDArray[np.uint8]) -> Constant:
    quantization = tensor.Quantization()
    scales = quantization.ScaleAsNumpy() if quantization is not None else None
    if tensor.Type() != schema.TensorType.INT8 or not isinstance(scales, np.ndarray):
        return Constant(_address(data) - base, data, None, 0, -1)
    axis = int(quantization.QuantizedDimension()) if len(scales) > 1 else -1
    return Constant(_address(data) - base, data, scales, _address(scales) - base, axis)


def _alike(held: Constants, weight: NDArray[Any]) -> Iterator[Constant]:
    """The constants that are the weight, or the weight quantised."""
    start = weight.flat[:_TELLING].tobytes()
    for constant in held.get(weight.nbytes, []):
        if constant.data[: len(start)].tobytes() == start and constant.data.tobytes() == weight.tobytes():
            yield constant
    if weight.dtype == np.float32:
        yield from (each for each in held.get(weight.size, []) if each.scales is not None and _quantised(each, weight))


def _quantised(constant: Constant, weight: NDArray[np.float32]) -> bool:
    scales = constant.scales
    if scales is None or constant.axis >= weight.ndim:
        return False
    first = weight if constant.axis < 0 else weight.take(0, constant.axis)
    if not np.isclose(np.max(np.abs(first)) / 127, scales[0], rtol=1e-5):
        return False
    values, ours = quantise(weight, constant.axis)
    return values.tobytes() == constant.data.tobytes() and ours.tobytes() == scales.tobytes()


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
