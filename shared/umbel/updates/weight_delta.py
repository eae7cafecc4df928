"""The weight delta (weights after training minus weights before) as a safetensors file, in the dtypes of the weights."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import TensorError
from umbel.tensors import Tensors, WeightSpec
from umbel.updates.safetensors_layout import Place, neighbours, places_of, views

HEADER_ROOM, TENSOR_ROOM = 1 << 16, 1 << 10
"""Bytes allowed for a file's header: HEADER_ROOM once, plus TENSOR_ROOM and the name for each tensor."""

_FLOAT32 = np.dtype("<f4")

SumSquares = Callable[[NDArray[Any]], float]
"""A function that sums the squares of an array. Its result is not finite when an element is not, or when it overflows."""


# The device's half.


def empty_delta(weights: Tensors) -> Tensors:
    """Tensors of the shapes and dtypes of `weights` with values not yet set.

    They lie in memory as in a file: one after the other, in the order of names.
    """
    file = np.empty(sum(weight.nbytes for weight in weights.values()), np.uint8)
    delta, end = {}, 0
    for name in sorted(weights):
        weight = weights[name]
        delta[name] = file[end : end + weight.nbytes].view(weight.dtype).reshape(weight.shape)
        end += weight.nbytes
    return delta


def difference(after: Mapping[str, NDArray[Any]], before: Tensors) -> Tensors:
    """The delta that a device sends: after - before, in the dtypes of `before`. It lies in memory as in a file."""
    delta = empty_delta(before)
    for name, values in delta.items():
        np.subtract(after[name], before[name], out=values)
    return delta


# The server's half.


@dataclass(frozen=True)
class Decoded:
    """A delta read from a file.

    `places` are the places of its tensors in the file; empty when the file holds the delta in another form. `squares` is
    the sum of squares of its elements; None when decoding did not compute it.
    """

    delta: Tensors
    places: Mapping[str, Place]
    squares: float | None


def largest_header(specs: Sequence[WeightSpec]) -> int:
    """The largest header, in bytes, of a file of tensors of `specs`; it allows for headers that other libraries write."""
    return HEADER_ROOM + sum(TENSOR_ROOM + 6 * len(spec.name) for spec in specs)


def largest_file(specs: Sequence[WeightSpec]) -> int:
    """The largest file, in bytes, of tensors of `specs`."""
    return largest_header(specs) + sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in specs)


def decode(file: NDArray[np.uint8], ends: Iterable[int], header: int, squares: SumSquares) -> Decoded:
    """The tensors of a file, as views of it; the header has at most `header` bytes.

    `ends` yields the number of bytes of `file` that have arrived so far. When all tensors are float32, `squares` sums the
    squares of each piece as it arrives, while the piece is in the processor's cache. Raises TensorError when the file does
    not parse; exceptions from `ends` pass through.
    """
    sums: list[float] = []
    begin = -1
    for end in ends:
        if begin < 0:
            begin = _floats_begin(file[:end], file.size, header)
        if begin:
            # A piece may end within a number.
            whole = end - (end - begin) % _FLOAT32.itemsize
            sums.append(squares(file[begin:whole].view(_FLOAT32)))
            begin = whole
    tensors = views(file.data, header)
    return Decoded(tensors, places_of(file.data, most=header), math.fsum(sums) if begin else None)


def _floats_begin(beginning: NDArray[np.uint8], size: int, header: int) -> int:
    """The byte from which a file of `size` bytes holds only float32 numbers.

    0 when it holds other dtypes, or when the header has not arrived completely.
    """
    try:
        places = places_of(beginning.data, size, header).values()
    except TensorError:
        return 0
    begin = min((place.start for place in places), default=0)
    return begin if begin % _FLOAT32.itemsize == 0 and all(place.dtype == _FLOAT32 for place in places) else 0


def exact_difference(after: Mapping[str, NDArray[Any]], before: Mapping[str, NDArray[Any]]) -> Tensors:
    """after - before in float64, for a device that sent whole weights, as on Flower's own grid.

    It is exact, or nearly so, for float32 weights.
    """
    return {name: np.subtract(after[name], weight, dtype=np.float64) for name, weight in before.items()}


def sum_of_squares(delta: Mapping[str, NDArray[Any]], squares: SumSquares) -> float:
    """The sum of squares of all elements of `delta`, by `squares`: in one call when its tensors are `neighbours`."""
    tensors = [delta[name] for name in sorted(delta)]
    whole = neighbours(tensors) if tensors else None
    # Not fsum, which raises an error when finite squares add up to infinity.
    return float(sum(squares(tensor) for tensor in (tensors if whole is None else [whole])))


def norm(delta: Mapping[str, NDArray[Any]], squares: SumSquares, known: float | None = None) -> float:
    """The L2 norm over all tensors of `delta`; `known` is their sum of squares if it was computed before.

    Raises TensorError, which names a tensor, when an element is not finite or the squares overflow.
    """
    norm = math.sqrt(sum_of_squares(delta, squares) if known is None else known)
    if not math.isfinite(norm):
        sums = {name: squares(tensor) for name, tensor in delta.items()}
        broken = next((name for name, own in sums.items() if not math.isfinite(own)), max(sums, key=sums.__getitem__))
        what = "numbers too large to square" if np.isfinite(delta[broken]).all() else "NaN or infinity"
        raise TensorError(f"tensor {broken!r} holds {what}")
    return norm
