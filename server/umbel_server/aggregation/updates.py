"""One device's update: its tensors to fold now, and its pieces to read again when a strategy compares all updates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from umbel.tensors import Tensors
from umbel.updates import exact_difference
from umbel.updates.safetensors_layout import PREFIX, Place, header_length, parse_header
from umbel_server.storage.blobs import Blobs

NEAR = 1 << 12
"""Elements closer than this are read together, because a read costs more than the bytes between them."""


class Pieces(Protocol):
    """An update that can be read piece by piece, any number of times."""

    def weights(self, name: str, start: int, stop: int, base: NDArray[Any]) -> NDArray[Any]:
        """The device's weights, elements `start` to before `stop` of tensor `name`, flattened, in the dtype of `base`.

        `base` is the same piece of the weights the device was given.
        """

    def deltas(self, name: str, index: NDArray[np.intp]) -> NDArray[Any]:
        """The delta's elements at `index`, ascending, of tensor `name`, flattened, as they were folded."""


@dataclass(frozen=True)
class Update:
    """What a device sent: `delta` by name, and `pieces` to read it again later. A fold keeps one of the two.

    `squares` is the sum of squares of the delta's elements, if it was computed before.
    """

    delta: Tensors
    pieces: Pieces
    squares: float | None = None


class BlobPieces:
    """A weight delta in a safetensors blob, read by byte ranges; its digest was checked when it was vetted."""

    def __init__(self, blobs: Blobs, sha256: str, places: Mapping[str, Place] | None = None) -> None:
        """`places` says where its tensors lie, if that is known."""
        self._blobs, self._sha256 = blobs, sha256
        self._places = places or {}

    def weights(self, name: str, start: int, stop: int, base: NDArray[Any]) -> NDArray[Any]:
        """As `Pieces`: base + delta. Raises MissingBlob and TensorError."""
        place = self._place(name)
        first = place.start + start * place.dtype.itemsize
        data = self._bytes(first, first + (stop - start) * place.dtype.itemsize)
        weights: NDArray[Any] = np.add(base, np.frombuffer(data, place.dtype), dtype=base.dtype)
        return weights

    def deltas(self, name: str, index: NDArray[np.intp]) -> NDArray[Any]:
        """As `Pieces`; elements near each other are read together. Raises MissingBlob and TensorError."""
        place = self._place(name)
        cuts = np.flatnonzero(np.diff(index) > NEAR) + 1
        near = [own for own in np.split(index, cuts) if own.size]
        starts = [place.start + int(own[0]) * place.dtype.itemsize for own in near]
        stops = [place.start + (int(own[-1]) + 1) * place.dtype.itemsize for own in near]
        read = self._blobs.read_ranges(self._sha256, starts, stops) if near else []
        found = [np.frombuffer(data, place.dtype)[own - own[0]] for own, data in zip(near, read, strict=True)]
        return np.concatenate([np.empty(0, place.dtype), *found])

    def _place(self, name: str) -> Place:
        if not self._places:
            size = self._blobs.size(self._sha256)
            length = header_length(self._bytes(0, min(PREFIX, size)), size)
            self._places = parse_header(self._bytes(PREFIX, PREFIX + length), size)
        return self._places[name]

    def _bytes(self, start: int, stop: int) -> bytes:
        return b"".join(self._blobs.read(self._sha256, start, stop))


class DeltaPieces:
    """A weight delta that `read` gives as a whole, for each piece again."""

    def __init__(self, read: Callable[[], Tensors]) -> None:
        self._read = read

    def weights(self, name: str, start: int, stop: int, base: NDArray[Any]) -> NDArray[Any]:
        """As `Pieces`: base + delta. Raises what `read` raises."""
        weights: NDArray[Any] = np.add(base, self._read()[name].reshape(-1)[start:stop], dtype=base.dtype)
        return weights

    def deltas(self, name: str, index: NDArray[np.intp]) -> NDArray[Any]:
        """As `Pieces`. Raises what `read` raises."""
        return self._read()[name].reshape(-1)[index]


class WeightPieces:
    """Whole weights in memory, from a reply on Flower's own grid, and the weights `base` that the device was given."""

    def __init__(self, weights: Mapping[str, NDArray[Any]], base: Mapping[str, NDArray[Any]]) -> None:
        self._weights = {name: weight.reshape(-1) for name, weight in weights.items()}
        self._base = {name: weight.reshape(-1) for name, weight in base.items()}

    def weights(self, name: str, start: int, stop: int, base: NDArray[Any]) -> NDArray[Any]:
        """As `Pieces`: the weights that the device sent; `base` is not used."""
        return self._weights[name][start:stop]

    def deltas(self, name: str, index: NDArray[np.intp]) -> NDArray[Any]:
        """As `Pieces`, in float64."""
        deltas: NDArray[Any] = np.subtract(self._weights[name][index], self._base[name][index], dtype=np.float64)
        return deltas


def from_weights(weights: Mapping[str, NDArray[Any]], base: Mapping[str, NDArray[Any]]) -> Update:
    """The update of a device that sent its weights, having been given `base`; the delta is float64, so exact or nearly."""
    return Update(exact_difference(weights, base), WeightPieces(weights, base))
