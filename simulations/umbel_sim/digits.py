"""scikit-learn's handwritten digits: 1,797 real 8x8 images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Digits:
    """`x` is float32[n, 8, 8, 1] in [0, 1]; `y` is int32[n] in 0..9."""

    x: NDArray[np.float32]
    y: NDArray[np.int32]

    def rows(self, indices: NDArray[np.integer]) -> "Digits":
        """The examples at `indices`."""
        return Digits(self.x[indices], self.y[indices])


def load_digits(held_out: float, rng: np.random.Generator) -> tuple[Digits, Digits]:
    """All digits, shuffled by `rng`, as (for the devices, held out on the server)."""
    from sklearn.datasets import load_digits as load

    data = load()
    x = (data.images / 16.0).astype(np.float32)[..., np.newaxis]
    order = rng.permutation(len(x))
    digits = Digits(x[order], data.target.astype(np.int32)[order])
    count = round(len(x) * held_out)
    return digits.rows(np.arange(count, len(x))), digits.rows(np.arange(count))
