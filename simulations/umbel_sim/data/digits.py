"""The handwritten digits that come with Umbel: 1,797 real 8x8 images, a fifth of them held out."""

import numpy as np

from umbel import Task
from umbel_sim.data.dataset import Dataset
from umbel_sim.data.fitting import pair, target_names
from umbel_sim.digits import load_digits

HELD_OUT = 0.2


def digits(task: Task | None = None) -> Dataset:
    """x: float32[8, 8, 1] in [0, 1], y: int32 in 0..9; the same examples are held out every time."""
    train, test = load_digits(HELD_OUT, np.random.default_rng(0))
    return Dataset(
        "digits",
        pair(task, "digits", train.x, train.y),
        pair(task, "digits", test.x, test.y),
        train.y.astype(np.int64),
        targets=target_names(task),
    )
