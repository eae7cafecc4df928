"""Overwrite the weights in an inference file by its weight map: a personalised TFLite model without a converter."""

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
    """`model` with the bytes of every weight in `placements` overwritten.

    Where the file holds int8, the float32 weight is quantised as in TFLite's dynamic-range quantisation: symmetric, narrow
    range [-127, 127], one scale for each channel. Raises TensorError when a weight does not fit its place.
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
    """int8 values and float32 scales of `weight`: one scale for each slice along `axis`, or a single one for axis -1."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    peak = np.max(np.abs(weight), axis=None if axis < 0 else others)
    steps = np.atleast_1d(np.asarray(peak, np.float32) / np.float32(127))
    # The converter divides, in float64, by the scale as it is before rounding to float32.
    exact = np.atleast_1d(np.asarray(peak, np.float64) / 127)
    # A subnormal scale has few digits, so rounding changes it much: here values are divided by the scale in the file
    # instead. Rounding goes up, so that the peak is at most 127 steps and a tiny peak does not get the scale 0.
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
            "the weights belong to another plan"
        )
    file[offset : offset + length] = data
