"""The process's memory while rounds run: what is freed is used again, and what will stay is not looked at again."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM, _MMAP = -1, -3
_KEPT = 1 << 29


@contextmanager
def steady() -> Iterator[None]:
    """Within it, garbage is collected without a look at what was there before.

    Flower's strategies collect it for every update, and TensorFlow has a million objects. From the first time on glibc also
    keeps freed memory for the next updates: to give it back and have its pages cleared again takes longer than a small
    model's training.
    """
    if (set_option := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        set_option(_TRIM, _KEPT)
        set_option(_MMAP, _KEPT)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
