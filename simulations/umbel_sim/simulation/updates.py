"""Updates that a round may read again: in memory as long as they are few, then in a temporary folder."""

import shutil
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.tensors import Tensors
from umbel_server.aggregation import Update


class DeltaPieces:
    """A weight delta, as umbel_server.aggregation.Pieces."""

    def __init__(self, delta: Mapping[str, NDArray[Any]]) -> None:
        self._delta = {name: tensor.reshape(-1) for name, tensor in delta.items()}

    def weights(self, name: str, start: int, stop: int, base: NDArray[Any]) -> NDArray[Any]:
        """As Pieces."""
        weights: NDArray[Any] = np.add(base, self._delta[name][start:stop], dtype=base.dtype)
        return weights

    def deltas(self, name: str, index: NDArray[np.intp]) -> NDArray[Any]:
        """As Pieces."""
        return self._delta[name][index]


class FilePieces:
    """A weight delta in a file of its own, as umbel_server.aggregation.Pieces; the file is opened when it is read."""

    def __init__(self, path: Path, delta: Tensors) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int, np.dtype[Any]]] = {}
        end = 0
        with path.open("wb") as file:
            for name, tensor in delta.items():
                tensor.tofile(file)
                self._places[name] = end, end + tensor.nbytes, tensor.dtype
                end += tensor.nbytes

    def weights(self, name: str, start: int, stop: int, base: NDArray[Any]) -> NDArray[Any]:
        """As Pieces."""
        weights: NDArray[Any] = np.add(base, self._tensor(name)[start:stop], dtype=base.dtype)
        return weights

    def deltas(self, name: str, index: NDArray[np.intp]) -> NDArray[Any]:
        """As Pieces."""
        return self._tensor(name)[index]

    def _tensor(self, name: str) -> NDArray[Any]:
        start, stop, dtype = self._places[name]
        return self._mapped[start:stop].view(dtype)

    @cached_property
    def _mapped(self) -> NDArray[np.uint8]:
        return np.asarray(np.memmap(self._path, np.uint8, "r"))


class Kept:
    """The updates of the rounds under way: up to `memory` bytes of them in memory, the others in files."""

    def __init__(self, memory: int = 1 << 29) -> None:
        self._memory, self._held = memory, 0
        self._sizes: dict[str, int] = {}
        self._files: dict[str, Path] = {}
        self._folder: Path | None = None

    def update(self, id: str, delta: Tensors, squares: float) -> Update:
        """An update of `delta`, whose sum of squares is `squares`, that can be read until it is dropped."""
        size = sum(tensor.nbytes for tensor in delta.values())
        if self._held + size <= self._memory:
            self._held, self._sizes[id] = self._held + size, size
            return Update(delta, DeltaPieces(delta), squares)
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="umbel-updates-"))
        self._files[id] = path = self._folder / id
        return Update(delta, FilePieces(path, delta), squares)

    def drop(self, id: str) -> None:
        """Forget an update."""
        self._held -= self._sizes.pop(id, 0)
        if (path := self._files.pop(id, None)) is not None:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
