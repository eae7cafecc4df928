import numpy as np
import pytest

from umbel.errors import UmbelError
from umbel_sim.digits import load_digits
from umbel_sim.partitions import dirichlet


def test_every_row_goes_to_exactly_one_device() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 500)
    parts = dirichlet(labels, 8, 0.5, np.random.default_rng(1), minimum=10)
    assert sorted(np.concatenate(parts).tolist()) == list(range(500))
    assert min(len(part) for part in parts) >= 10


def test_the_same_seed_gives_the_same_split() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 200)
    first, second = (dirichlet(labels, 4, 0.5, np.random.default_rng(7)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_split_that_cannot_be_is_refused() -> None:
    with pytest.raises(UmbelError, match="no Dirichlet"):
        dirichlet(np.zeros(5, int), 4, 0.5, np.random.default_rng(0), minimum=3)


def test_a_fifth_of_the_digits_is_held_out() -> None:
    train, held_out = load_digits(0.2, np.random.default_rng(0))
    assert (len(train.y), len(held_out.y)) == (1438, 359)
    assert train.x.shape[1:] == (8, 8, 1)
    assert (train.x.min(), train.x.max()) == (0.0, 1.0)
