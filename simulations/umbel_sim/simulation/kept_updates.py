"""Updates that a round may read again: in memory as long as they are few, then in a temporary folder."""

import shutil
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from umbel.tensors import Tensors
from umbel_server.aggregation import DeltaPieces, Update


class DeltaFile:
    """A weight delta in a file of its own; calling it gives the tensors, which are read from the file when they are used."""

    def __init__(self, path: Path, delta: Tensors) -> None:
        """Write `delta` to `path`. Raises OSError."""
        self._path = path
        self._places: dict[str, tuple[int, int, np.dtype[Any], tuple[int, ...]]] = {}
        end = 0
        with path.open("wb") as file:
            for name, tensor in delta.items():
                tensor.tofile(file)
                self._places[name] = end, end + tensor.nbytes, tensor.dtype, tensor.shape
                end += tensor.nbytes

    def __call__(self) -> Tensors:
        return self._tensors

    @cached_property
    def _tensors(self) -> Tensors:
        mapped = np.asarray(np.memmap(self._path, np.uint8, "r"))
        return {
            name: mapped[start:stop].view(dtype).reshape(shape)
            for name, (start, stop, dtype, shape) in self._places.items()
        }


class KeptUpdates:
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
            return Update(delta, DeltaPieces(lambda: delta), squares)
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="umbel-updates-"))
        self._files[id] = path = self._folder / id
        return Update(delta, DeltaPieces(DeltaFile(path, delta)), squares)

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
