"""The class of every example, for partitions and pictures by class."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 10
"""Classes that continuous targets are put into: equal shares of the examples, from the smallest to the largest."""


def labels_of(targets: NDArray[Any], keys: NDArray[np.integer] | None = None) -> NDArray[np.integer]:
    """int[n] classes of `targets`: an integer is its class, a row of several numbers that are 0 but for one 1 is its place,
    a continuous number its tenth of the sorted targets. Anything else, such as a sequence, has its owner as its class, or 0.
    """
    if not len(targets):
        return np.zeros(0, np.int64)
    flat = targets.reshape(len(targets), -1)
    if flat.shape[1] == 1 and flat.dtype.kind in "biu":
        return flat[:, 0].astype(np.int64)
    if flat.shape[1] == 1 and flat.dtype.kind == "f":
        if np.array_equal(flat, np.round(flat)) and len(np.unique(flat)) <= max(BINS, 2):
            return flat[:, 0].astype(np.int64)
        cuts = np.quantile(flat[:, 0], np.linspace(0, 1, BINS + 1)[1:-1])
        return np.asarray(np.searchsorted(cuts, flat[:, 0], side="right"), np.int64)
    if targets.ndim == 2 and np.isin(flat, (0, 1)).all() and (flat.sum(axis=1) == 1).all():
        return np.asarray(flat.argmax(axis=1), np.int64)
    return np.zeros(len(targets), np.int64) if keys is None else keys


def owners_of(column: NDArray[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Keys and their names from a column that names each example's owner, by a number or a string; sorted by owner."""
    names, keys = np.unique(column, return_inverse=True)
    return keys.reshape(-1).astype(np.int64), tuple(str(name) for name in names)
