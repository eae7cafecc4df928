"""Handwritten digits: 1,797 real 8x8 images of 13 people, in the file digits.npz beside this one.

They are the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0), in scikit-learn's order.
"""

from dataclasses import dataclass
from importlib import resources

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
    with resources.files("umbel_sim").joinpath("digits.npz").open("rb") as file, np.load(file) as data:
        images, target = data["images"], data["target"]
    x = (images / 16.0).astype(np.float32)[..., np.newaxis]
    order = rng.permutation(len(x))
    digits = Digits(x[order], target.astype(np.int32)[order])
    count = round(len(x) * held_out)
    return digits.rows(np.arange(count, len(x))), digits.rows(np.arange(count))
