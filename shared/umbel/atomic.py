import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def open_atomically(path: Path, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Open a new file that replaces the one at `path` when the block ends: a crash leaves the old bytes or the new ones.

    The bytes are on disk (fsync) before the rename. When the block raises, the old file stays and the new one is removed.
    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace the file at `path` by `data`, as `open_atomically` does."""
    with open_atomically(path, mode) as file:
        file.write(data)


def remove_interrupted(folder: Path) -> None:
    """Remove the temporary files that a killed process left in `folder` and its subfolders."""
    for path in folder.rglob(".*"):
        if path.is_file():
            path.unlink()
