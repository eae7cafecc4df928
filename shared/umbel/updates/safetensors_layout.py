"""The places of the tensors in a safetensors file, to read them without a copy, or while the file arrives.

The format is that of https://huggingface.co/docs/safetensors: eight bytes of length, a JSON header, the tensors' bytes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import TensorError
from umbel.tensors import Tensors

PREFIX = 8
CACHED_HEADER = 1 << 16
LARGEST_HEADER = 100_000_000
"""The limit of the reference implementation."""

DIMENSIONS, MOST_BYTES = 32, 2**63 - 1
"""The most dimensions and bytes of an array that every supported NumPy can make. Larger shapes are refused early, because
their product may take minutes to compute."""

_SHOWN = 200
"""The most characters of text from the file that an error shows, because somebody else chose the text."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@dataclass(frozen=True)
class Place:
    """One tensor's dtype and shape, and the byte of the file at which it begins."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """The byte of the file after the tensor's last one."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def header_length(prefix: bytes, size: int, most: int = LARGEST_HEADER) -> int:
    """The length of the header, in bytes, of a file of `size` bytes that begins with `prefix`.

    Raises TensorError when the header does not fit in the file, or has more than `most` bytes.
    """
    length = int.from_bytes(prefix[:PREFIX], "little")
    if len(prefix) < PREFIX or length > size - PREFIX:
        raise TensorError(f"expected safetensors bytes, got {size} bytes without a header")
    if length > most:
        raise TensorError(f"expected safetensors bytes with a header of at most {most} bytes, got {length}")
    return length


def parse_header(header: bytes, size: int) -> dict[str, Place]:
    """The places of the tensors in a file of `size` bytes, by name and in the order of names.

    `header` is the JSON text. Raises TensorError unless tensors of known dtypes fill the file without gap or overlap.
    """
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        found = {name: _place(entry, PREFIX + len(header)) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TensorError(
            f"expected safetensors bytes, got a header that does not parse: {str(error)[:_SHOWN]}"
        ) from error
    end = PREFIX + len(header)
    for name, place in sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)):
        if place.start != end:
            raise TensorError(
                f"expected safetensors bytes, tensor {name[:_SHOWN]!r} should begin at byte {end}, not {place.start}"
            )
        end = place.stop
    if end != size:
        raise TensorError(f"expected safetensors bytes, the tensors end at byte {end} of {size}")
    return dict(sorted(found.items()))


@lru_cache(maxsize=16)
def _parse_again(header: bytes, size: int) -> Mapping[str, Place]:
    """As `parse_header`, with a cache: the updates of a round have the same header."""
    return MappingProxyType(parse_header(header, size))


def places_of(
    data: bytes | bytearray | memoryview, size: int | None = None, most: int = LARGEST_HEADER
) -> Mapping[str, Place]:
    """The places of a file's tensors by name, in the order of names.

    `data` is the whole file, or its beginning when `size` gives the size of the whole. Raises TensorError as
    `header_length` and `parse_header` do.
    """
    view = memoryview(data).cast("B")
    size = view.nbytes if size is None else size
    length = header_length(bytes(view[:PREFIX]), size, most)
    parse = _parse_again if length <= CACHED_HEADER else parse_header
    return parse(bytes(view[PREFIX : PREFIX + length]), size)


def views(data: bytes | bytearray | memoryview, most: int = LARGEST_HEADER) -> Tensors:
    """The tensors of a whole file as views of `data`, in the order of names; raises TensorError as `places_of` does."""
    view, places = memoryview(data).cast("B"), places_of(data, most=most)
    file = np.frombuffer(view, np.uint8)
    return {
        name: file[place.start : place.stop].view(place.dtype).reshape(place.shape) for name, place in places.items()
    }


def neighbours(tensors: Sequence[NDArray[Any]]) -> NDArray[Any] | None:
    """One vector over all `tensors` without a copy, or None when that is impossible.

    It is possible when `views` made the tensors from one file, with one dtype, and they lie in it one after the other.
    """
    first = tensors[0]
    file, end = first.base, first.ctypes.data
    if not isinstance(file, np.ndarray) or file.dtype != np.uint8 or file.ndim != 1:
        return None
    for tensor in tensors:
        if tensor.base is not file or tensor.ctypes.data != end or tensor.dtype != first.dtype:
            return None
        end += tensor.nbytes
    start = first.ctypes.data - file.ctypes.data
    vector: NDArray[Any] = file[start : start + end - first.ctypes.data].view(first.dtype)
    return vector


def joined(tensors: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The elements of one or more tensors as one vector; a copy unless the tensors are `neighbours`."""
    vector = neighbours(tensors)
    return np.concatenate([tensor.reshape(-1) for tensor in tensors]) if vector is None else vector


def _place(entry: Mapping[str, Any], begin: int) -> Place:
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    start, stop = entry["data_offsets"]
    if len(shape) > DIMENSIONS:
        raise ValueError(f"a shape should have at most {DIMENSIONS} dimensions, got {len(shape)}")
    if not all(type(number) is int and 0 <= number <= MOST_BYTES for number in (*shape, start, stop)):
        raise ValueError(f"shapes and offsets should be whole numbers from 0 to {MOST_BYTES}")
    if math.prod(number or 1 for number in shape) * dtype.itemsize > MOST_BYTES:
        raise ValueError(f"{dtype}{shape} has more than {MOST_BYTES} bytes")
    place = Place(dtype, tuple(shape), begin + start)
    if place.stop != begin + stop:
        raise ValueError(f"{dtype}{shape} does not fill bytes {start} to {stop}")
    return place
