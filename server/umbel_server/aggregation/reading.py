"""Reading an update's blob, once: its digest and its sum of squares are taken of each piece while that is in the cache."""

import math
import weakref

import numpy as np
from numpy.typing import NDArray

from umbel.errors import TensorError
from umbel_server.aggregation import passes
from umbel_server.aggregation.mean import NEARBY
from umbel_server.aggregation.safetensors_layout import LARGEST_HEADER, places_of, views
from umbel_server.aggregation.updates import BlobPieces, Update
from umbel_server.storage.blobs import Blobs

_FLOAT32 = np.dtype("<f4")


class Buffers:
    """Memory for updates that is used again: a page fault for every 4 kB of fresh memory costs as much as folding them.

    What waits to be used has at most `most` bytes. One thread takes.
    """

    def __init__(self, most: int = NEARBY) -> None:
        self._most = most
        self._free: list[NDArray[np.uint8]] = []

    def take(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes of any content; they come back by themselves when nothing refers to them any more."""
        # Memory comes back in any thread and at any moment, but at the end: what was counted before stays in its place.
        place = next((place for place, own in enumerate(self._free) if own.size >= size), None)
        memory = np.empty(max(1, size), np.uint8) if place is None else self._free.pop(place)
        # In a memoryview, behind which NumPy's views do not look: they keep this vector.
        file = np.frombuffer(memory.data, np.uint8)
        weakref.finalize(file, self._give_back, memory).atexit = False
        return file[:size]

    def close(self) -> None:
        """Let go of what waits to be used, and keep nothing that comes back from now on."""
        self._most, self._free = 0, []

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        if sum(own.size for own in self._free) + memory.size <= self._most:
            self._free.append(memory)


def from_blob(blobs: Blobs, sha256: str, buffers: Buffers, header: int = LARGEST_HEADER) -> Update:
    """The update of a blob that holds a delta, after at most `header` bytes of header.

    Raises MissingBlob, BlobError on changed bytes, TensorError.
    """
    file = buffers.take(blobs.size(sha256))
    squares: list[float] = []
    begin = -1
    for end in blobs.fill(sha256, file.data):
        if begin < 0:
            begin = _floats_begin(file[:end], file.size, header)
        if begin:
            # A piece may end within a number.
            whole = end - (end - begin) % _FLOAT32.itemsize
            squares.append(passes.squares(file[begin:whole].view(_FLOAT32), 1))
            begin = whole
    delta = views(file.data, header)
    places = places_of(file.data, most=header)
    return Update(delta, BlobPieces(blobs, sha256, places), math.fsum(squares) if begin else None)


def _floats_begin(beginning: NDArray[np.uint8], size: int, header: int) -> int:
    """Where a file of `size` bytes has nothing but float32 from; 0 when it has others, or more header than that."""
    try:
        places = places_of(beginning.data, size, header).values()
    except TensorError:
        return 0
    begin = min((place.start for place in places), default=0)
    return begin if begin % _FLOAT32.itemsize == 0 and all(place.dtype == _FLOAT32 for place in places) else 0
