"""The order in which a device trains on its examples."""

import random

import numpy as np
from numpy.typing import NDArray


def shuffles(seed: int, device: str) -> random.Random:
    """The random generator for a device's orders of examples: the same seed and device give the same orders.

    It is Python's own generator, because NumPy's adds 2 MB of memory to an agent.
    """
    return random.Random(f"{seed}/{device}")


def next_order(rng: random.Random, count: int) -> NDArray[np.intp]:
    """A permutation of `count` rows, intp[count]."""
    return np.array(rng.sample(range(count), count), np.intp)


def generator_of(rng: random.Random) -> NDArray[np.uint32]:
    """The generator's state, uint32[625]."""
    return np.array(rng.getstate()[1], np.uint32)


def set_generator(rng: random.Random, state: NDArray[np.uint32]) -> None:
    """Set the generator to a state of `generator_of`; raises ValueError when `state` is not one."""
    rng.setstate((3, tuple(state.tolist()), None))
