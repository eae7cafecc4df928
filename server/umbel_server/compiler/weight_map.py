"""The places of a weight's bytes in an inference file, and their layout there."""

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
"""The number of a weight's first elements that are compared first; most constants differ in these already."""


@dataclass(frozen=True)
class Constant:
    """A constant in a TFLite file: its bytes and the offset at which they begin.

    An int8 constant also has scales, their offset and their axis. `scale_copies` are further offsets of the same scales,
    which belong to tensors that are gathered from the constant.
    """

    offset: int
    data: NDArray[np.uint8]
    scales: NDArray[np.float32] | None = None
    scale_offset: int | None = None
    axis: int = -1
    scale_copies: tuple[int, ...] = ()


Constants = dict[int, list[Constant]]
"""Constants by their size in bytes."""


def constants(file: bytes) -> Constants:
    """All constants of a TFLite file; a buffer that several tensors share is listed once."""
    base = _address(np.frombuffer(file, np.uint8))
    model = schema.Model.GetRootAs(file, 0)
    graphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]
    tensors = [graph.Tensors(i) for graph in graphs for i in range(graph.TensorsLength())]
    scaled: dict[bytes, set[int]] = {}
    for scales in map(_scales, tensors):
        if scales is not None:
            scaled.setdefault(scales.tobytes(), set()).add(_address(scales) - base)
    found: dict[int, Constant] = {}
    for tensor in tensors:
        data = model.Buffers(tensor.Buffer()).DataAsNumpy()
        if isinstance(data, np.ndarray):
            found.setdefault(_address(data) - base, _constant(base, tensor, data, scaled))
    sizes: Constants = {}
    for constant in found.values():
        sizes.setdefault(constant.data.nbytes, []).append(constant)
    return sizes


def places(held: Constants, name: str, weight: NDArray[Any]) -> list[Placement]:
    """All places of a weight in the file. A shared layer's weight may be there once for each layout in which it is read."""
    found: dict[int, Placement] = {}
    for permutation in itertools.permutations(range(weight.ndim)):
        turned = weight.transpose(permutation)
        for constant in _alike(held, turned):
            if constant.offset not in found:
                kept = () if permutation == tuple(range(weight.ndim)) else permutation
                found[constant.offset] = Placement(
                    name,
                    constant.offset,
                    constant.data.nbytes,
                    kept,
                    constant.scale_offset,
                    constant.axis,
                    constant.scale_copies,
                )
    return list(found.values())


def _constant(base: int, tensor: Any, data: NDArray[np.uint8], scaled: dict[bytes, set[int]]) -> Constant:
    offset, scales = _address(data) - base, _scales(tensor)
    if tensor.Type() != schema.TensorType.INT8 or scales is None:
        return Constant(offset, data)
    axis = int(tensor.Quantization().QuantizedDimension()) if len(scales) > 1 else -1
    own = _address(scales) - base
    return Constant(offset, data, scales, own, axis, tuple(sorted(scaled[scales.tobytes()] - {own})))


def _scales(tensor: Any) -> NDArray[np.float32] | None:
    quantization = tensor.Quantization()
    scales = quantization.ScaleAsNumpy() if quantization is not None else None
    return scales if isinstance(scales, np.ndarray) else None


def _alike(held: Constants, weight: NDArray[Any]) -> Iterator[Constant]:
    """The constants that equal the weight, or the quantised weight."""
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
