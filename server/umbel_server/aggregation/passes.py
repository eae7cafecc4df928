"""The passes over updates in which aggregation spends its time: sums of squares, and weighted sums of a few updates.

Both are bound by memory: an update of the MNIST CNN is 6.6 MB. NumPy makes a pass for every operation; `passes.c` makes
one for all of them, on two cores. It is compiled when Umbel is installed on a machine with a C compiler. Without it, and for
other dtypes or strides, NumPy does the work. Their results differ in their last bits, which does not show: `OrderFreeSum`
knows how far each can be off.
"""

import ctypes
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 14
"""Elements that are summed at once, so that the intermediate results stay in the processor's cache."""

ROWS = 8
"""Updates that are summed together, so that a block of the sums comes to the cache once for all of them."""

LIBRARY = Path(__file__).with_name("libpasses.so")

CORES = min(2, os.cpu_count() or 1)
"""Threads of a pass over many elements."""

_WORTH_A_THREAD = 1 << 17
_TINY = 2.0**-90
"""Sums of float32 squares below this may have lost some to underflow."""


def _load(kind: type[ctypes.CDLL]) -> ctypes.CDLL | None:
    try:
        library = kind(str(LIBRARY))
    except OSError:  # not compiled, or for another machine
        return None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    library.umbel_squares.argtypes = [size, pointer, ctypes.c_int]
    library.umbel_squares.restype = ctypes.c_double
    library.umbel_fold.argtypes = [size, size, pointer, pointer, pointer, pointer, pointer, ctypes.c_int]
    library.umbel_fold.restype = None
    return library


compiled = _load(ctypes.CDLL)
"""`passes.c`, or None where it was not compiled: then NumPy does all of it."""
_holding = _load(ctypes.PyDLL)
"""The same, which keeps the interpreter's lock: to get it back from busy threads would take longer than a small pass."""


def squares(values: NDArray[Any], threads: int = CORES) -> float:
    """The sum of squares of real `values`, by at most `threads`; not finite exactly when one is not, or its square is none in float64."""
    flat = values.reshape(-1)
    if compiled is not None and _is_plain(flat):
        return float(_for(flat.size).umbel_squares(flat.size, flat.ctypes.data, min(threads, _threads(flat.size))))
    if flat.dtype in (np.float32, np.float64):
        # One pass that BLAS makes at the speed of memory; NaN and infinity cannot leave it finite.
        with np.errstate(over="ignore", invalid="ignore"):
            fast = float(np.dot(flat, flat))
        if _TINY < fast < math.inf or flat.dtype == np.float64:
            return fast
    return math.fsum(_squares_of_block(flat[start : start + BLOCK]) for start in range(0, flat.size, BLOCK))


def _squares_of_block(block: NDArray[Any]) -> float:
    wide = block.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.dot(wide, wide))


def fold(
    addends: Sequence[NDArray[Any]], weights: NDArray[np.float64], sums: NDArray[np.float64], threads: int = CORES
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Add weight * values of one to ROWS flat addends to `sums`, in float64 and in any order, by at most `threads`.

    Returns the sums of squares, float64[addends, blocks] (those of float32 may be summed in float32, and overflow), and
    where every addition was exact, bool[blocks]: never where that was not looked at.
    """
    blocks = -(-sums.size // BLOCK)
    if compiled is None or not all(map(_is_plain, addends)):
        return fold_with_numpy(addends, weights, sums), np.zeros(blocks, np.bool_)
    found, lost, factors = np.empty((ROWS, blocks)), np.empty(blocks), np.zeros(ROWS)
    factors[: len(addends)] = weights
    rows = [addends[min(row, len(addends) - 1)].ctypes.data for row in range(ROWS)]
    pointers = (ctypes.c_void_p * ROWS)(*rows)
    _for(sums.size).umbel_fold(
        sums.size,
        BLOCK,
        pointers,
        factors.ctypes.data,
        sums.ctypes.data,
        found.ctypes.data,
        lost.ctypes.data,
        min(threads, _threads(sums.size)),
    )
    return found[: len(addends)], lost == 0.0


def _is_plain(values: NDArray[Any]) -> bool:
    flags = values.flags
    return values.dtype == np.float32 and flags.c_contiguous and flags.aligned


def fold_with_numpy(
    addends: Sequence[NDArray[Any]], weights: NDArray[np.float64], sums: NDArray[np.float64]
) -> NDArray[np.float64]:
    """As `fold`, without the compiled pass; returns the sums of squares alone."""
    blocks = -(-sums.size // BLOCK)
    found = np.empty((len(addends), blocks))
    all_rows, all_groups = np.empty((len(addends), min(sums.size, BLOCK))), np.empty(min(sums.size, BLOCK))
    with np.errstate(over="ignore", invalid="ignore"):
        for number in range(blocks):
            part = slice(number * BLOCK, min(sums.size, (number + 1) * BLOCK))
            rows, group = all_rows[:, : part.stop - part.start], all_groups[: part.stop - part.start]
            for index, values in enumerate(addends):
                # BLAS reads memory faster than a cast does; its sum of squares costs half of what extremes do.
                block, row = values[part], rows[index]
                row[:] = block
                own = block if block.dtype in (np.float32, np.float64) else row
                found[index, number] = np.dot(own, own)
            np.dot(weights, rows, out=group)
            np.add(sums[part], group, out=sums[part])
    return found


def _for(size: int) -> Any:
    return compiled if size >= _WORTH_A_THREAD else _holding


def _threads(size: int) -> int:
    return CORES if size >= _WORTH_A_THREAD else 1
