"""Counting the device's examples without reading them."""

import os
import zipfile
from pathlib import Path

from numpy.lib import format as npy


class ExampleCount:
    """The number of rows in an `.npz` file: its arrays' headers are read again when the file has changed.

    0 when there is no file, or none that can be read. Safe to call from several threads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[tuple[int, int, int], int] | None = None

    def __call__(self) -> int:
        try:
            found = os.stat(self._path)
        except OSError:
            return 0
        version = found.st_mtime_ns, found.st_size, found.st_ino
        known = self._known
        if known is None or known[0] != version:
            self._known = known = version, _rows(self._path)
        return known[1]


def _rows(path: Path) -> int:
    """The rows that every array with rows has: the smallest first axis."""
    counts = []
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    version = npy.read_magic(stream)
                    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                    shape = read(stream)[0]
                if shape:
                    counts.append(int(shape[0]))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError):
        return 0
    return min(counts, default=0)
