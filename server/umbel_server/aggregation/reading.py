"""Reading the blob of an update once: the digest and the sum of squares of each piece are computed while it is in the cache."""

import weakref

import numpy as np
from numpy.typing import NDArray

from umbel.messages import Blob
from umbel.updates import Pipeline
from umbel_server.aggregation import passes
from umbel_server.aggregation.mean import NEARBY
from umbel_server.aggregation.updates import BlobPieces, DeltaPieces, Pieces, Update
from umbel_server.storage.blobs import Blobs


class Buffers:
    """Memory for updates that is used again: a page fault for every 4 kB of fresh memory costs as much as folding them.

    At most `most` bytes wait to be used again. Only one thread may call `take`.
    """

    def __init__(self, most: int = NEARBY) -> None:
        self._most = most
        self._free: list[NDArray[np.uint8]] = []

    @property
    def free_bytes(self) -> int:
        """Bytes of memory that wait to be used again."""
        return sum(own.size for own in list(self._free))

    def take(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes of any content; they are used again when nothing refers to them any more."""
        # Memory comes back in any thread and at any moment, but at the end: what was counted before stays in its place.
        place = next((place for place, own in enumerate(self._free) if own.size >= size), None)
        memory = np.empty(max(1, size), np.uint8) if place is None else self._free.pop(place)
        # In a memoryview, behind which NumPy's views do not look: they keep this vector.
        file = np.frombuffer(memory.data, np.uint8)
        weakref.finalize(file, self._give_back, memory).atexit = False
        return file[:size]

    def close(self) -> None:
        """Free the memory that waits to be used, and keep none from now on."""
        self._most, self._free = 0, []

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        if self.free_bytes + memory.size <= self._most:
            self._free.append(memory)


def from_blob(pipeline: Pipeline, blobs: Blobs, blob: Blob, buffers: Buffers) -> Update:
    """The update of a blob that a device sent through `pipeline`.

    Raises MissingBlob; BlobError when the bytes were changed, also when they are not `blob.size` bytes; TensorError.
    """
    file, sha256 = buffers.take(blob.size), blob.sha256
    decoded = pipeline.decode(file, blobs.fill(sha256, file.data), lambda piece: passes.squares(piece, 1))
    pieces: Pieces = BlobPieces(blobs, sha256, decoded.places)
    if not pipeline.is_plain:
        pieces = DeltaPieces(lambda: pipeline.decode_again(blobs.get(sha256)))
    return Update(decoded.delta, pieces, decoded.squares)
