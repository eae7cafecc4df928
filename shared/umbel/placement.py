"""Writing weights into an inference file by its weight map: a personalised TFLite model without a converter."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import TensorError
from umbel.plan import Placement

_ROWS_AT_ONCE = 64
_SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)
_SMALLEST_SUBNORMAL = float(np.finfo(np.float32).smallest_subnormal)


def place(model: bytes, weights: Mapping[str, NDArray[Any]], placements: Iterable[Placement]) -> bytes:
    """`model` with the bytes of every placed weight overwritten.

    Where the file holds int8, float32 weights are quantised as TFLite's dynamic-range quantisation does:
    symmetric, narrow range [-127, 127], one scale a channel. Raises TensorError when a weight does not fit its place.
    """
    file = bytearray(model)
    for placement in placements:
        weight = np.asarray(weights[placement.weight])
        laid = np.ascontiguousarray(weight.transpose(placement.permutation) if placement.permutation else weight)
        if placement.scale_offset is None:
            data = laid.tobytes()
        else:
            quantised, scales = quantise(laid, placement.axis)
            for offset in (placement.scale_offset, *placement.scale_copies):
                _overwrite(file, placement.weight, offset, scales.tobytes(), scales.nbytes)
            data = quantised.tobytes()
        _overwrite(file, placement.weight, placement.offset, data, placement.length)
    return bytes(file)


def quantise(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 values and float32 scales of `weight`: one scale a slice along `axis`, or one for all when `axis` is -1."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    peak = np.max(np.abs(weight), axis=None if axis < 0 else others)
    steps = np.atleast_1d(np.asarray(peak, np.float32) / np.float32(127))
    # The converter divides in float64 by the scale before it is rounded to float32.
    exact = np.atleast_1d(np.asarray(peak, np.float64) / 127)
    # A subnormal scale has few digits, so it is far from the exact one: its values are those of the scale in the file. It
    # is rounded up, or the peak would be more than 127 steps, and a tiny one has a scale too.
    subnormal = (exact > 0) & (exact < _SMALLEST_NORMAL)
    exact = np.where(subnormal, np.ceil(exact / _SMALLEST_SUBNORMAL) * _SMALLEST_SUBNORMAL, exact)
    exact[exact == 0] = 1.0
    scales = np.where(subnormal | (steps == 0), exact, steps).astype(np.float32)
    shape = [1] * weight.ndim
    if axis >= 0:
        shape[axis] = weight.shape[axis]
    exact = np.broadcast_to(exact.reshape(shape), weight.shape)
    values = np.empty(weight.shape, np.int8)
    for start in range(0, len(weight), _ROWS_AT_ONCE):  # float64 takes eight times the memory of int8
        rows = slice(start, start + _ROWS_AT_ONCE)
        values[rows] = np.clip(np.round(weight[rows] / exact[rows]), -127, 127)
    return values, scales


def _overwrite(file: bytearray, name: str, offset: int, data: bytes, length: int) -> None:
    if len(data) != length or offset < 0 or offset + length > len(file):
        raise TensorError(
            f"weight {name!r} has {len(data)} bytes, its place in the file has {length} at {offset} of {len(file)}: "
            "the weights are not of this plan"
        )
    file[offset : offset + length] = data
