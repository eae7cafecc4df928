"""The folder that a simulation writes into: one simulation at a time, and a sentence when it cannot be written."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from umbel.errors import UmbelError


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """The folder, made if need be, while no other process has claimed it.

    Raises UmbelError when another has, or when nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UmbelError(f"{folder}: the result cannot be written: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            sentence = f"{folder}: another simulation writes there; wait for it, or name another output folder"
            raise UmbelError(sentence) from error
        yield folder
    finally:
        os.close(handle)
