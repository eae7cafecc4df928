"""Splitting labelled examples over devices, as real fleets have them: unequally."""

import numpy as np
from numpy.typing import NDArray

from umbel.errors import UmbelError

ATTEMPTS = 1000


def dirichlet(
    labels: NDArray[np.integer], devices: int, alpha: float, rng: np.random.Generator, minimum: int = 1
) -> list[NDArray[np.intp]]:
    """Row indices for each device: each label's rows are shared out by a draw from Dirichlet(alpha) (Hsu et al., arXiv
    1909.06335). Drawn again until every device has at least `minimum` rows; raises UmbelError when that never happens.
    """
    for _ in range(ATTEMPTS):
        parts: list[list[NDArray[np.intp]]] = [[] for _ in range(devices)]
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(devices, alpha))
            cuts = (np.cumsum(shares)[:-1] * len(rows)).astype(int)
            for part, piece in zip(parts, np.split(rows, cuts), strict=True):
                part.append(piece)
        split = [np.sort(np.concatenate(part)) for part in parts]
        if min(len(part) for part in split) >= minimum:
            return split
    raise UmbelError(
        f"no Dirichlet({alpha}) split of {len(labels)} rows gives each of {devices} devices {minimum} rows; "
        "take fewer devices, a larger alpha or a smaller minimum"
    )
