"""What tells one partition from another."""

import numpy as np
import pytest

from umbel.errors import UmbelError
from umbel_sim.data.dataset import Dataset
from umbel_sim.partitions import partition
from umbel_sim.partitions.dirichlet import of_devices, of_labels
from umbel_sim.partitions.quantity import log_normal_sizes
from umbel_sim.partitions.rows import even_sizes
from umbel_sim.partitions.shards import shards

LABELS = np.random.default_rng(0).integers(0, 10, 2000)


def of_roles(*counts: int) -> Dataset:
    """Examples of as many owners as there are counts, mixed; the target is the owner."""
    keys = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    names = tuple(f"ROLE {owner}" for owner in range(len(counts)))
    return Dataset("play", {"x": np.zeros((len(keys), 1), np.float32), "y": keys}, {}, keys, keys, names)


def test_a_device_of_k_shards_has_about_k_labels() -> None:
    split = shards(LABELS, 50, 2, np.random.default_rng(1))
    labels = [len(np.unique(LABELS[split.rows(device)])) for device in range(50)]
    assert np.median(labels) == 2
    assert max(labels) <= 4
    assert set(split.sizes) == {40}


def test_devices_have_fewer_labels_the_smaller_alpha_and_the_sizes_they_were_given() -> None:
    present = []
    for alpha in (0.1, 1.0, 100.0):
        split = of_devices(LABELS, even_sizes(2000, 50), alpha, np.random.default_rng(1))
        assert set(split.sizes) == {40}
        present.append(np.mean([len(np.unique(LABELS[split.rows(device)])) for device in range(50)]))
    assert present[0] < 3 < present[1] < 9 < present[2]


def test_a_split_by_label_gives_every_row_to_one_device_and_the_minimum_to_each() -> None:
    split = of_labels(LABELS[:500], 8, 0.5, np.random.default_rng(1), minimum=10)
    assert sorted(split.order.tolist()) == list(range(500))
    assert split.sizes.min() >= 10
    assert len(set(split.sizes)) > 4
    again = of_labels(LABELS[:500], 8, 0.5, np.random.default_rng(1), minimum=10)
    assert np.array_equal(split.order, again.order)


def test_a_split_by_label_that_cannot_be_is_refused() -> None:
    with pytest.raises(UmbelError, match="no Dirichlet"):
        of_labels(np.zeros(5, int), 4, 0.5, np.random.default_rng(0), minimum=3)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0, 1000.0])
def test_log_normal_sizes_add_up_and_keep_the_minimum(sigma: float) -> None:
    sizes = log_normal_sizes(10_000, 100, sigma, np.random.default_rng(2), 5)
    assert (sizes.sum(), sizes.min() >= 5) == (10_000, True)
    if sigma == 1.0:
        assert 0.8 < np.log(sizes).std() < 1.2
    assert log_normal_sizes(500, 100, sigma, np.random.default_rng(2), 5).tolist() == [5] * 100


def test_each_owner_is_a_device() -> None:
    fleet = partition("natural", of_roles(3, 9, 5), 3, 0)
    assert [fleet.examples(device)["y"].tolist() for device in range(3)] == [[0] * 3, [1] * 9, [2] * 5]


def test_of_more_owners_than_devices_the_largest_or_drawn_ones_are_taken() -> None:
    play = of_roles(3, 9, 5, 1)
    largest = partition("natural", play, 2, 0)
    assert [largest.examples(device)["y"][0] for device in range(2)] == [1, 2]
    drawn = {
        tuple(int(fleet.examples(d)["y"][0]) for d in range(2))
        for fleet in (partition("natural:random", play, 2, seed, min_examples=2) for seed in range(20))
    }
    assert drawn == {(0, 1), (0, 2), (1, 2)}


def test_owners_that_are_too_few_or_have_too_little_are_named() -> None:
    play = of_roles(3, 9, 5, 1)
    with pytest.raises(UmbelError, match="play has 4 owners of examples, 5 devices were asked for"):
        partition("natural", play, 5, 0)
    with pytest.raises(
        UmbelError, match=r"3 of 4 owners in play have at least 2 examples: 'ROLE 3', .* has 1; lower --min"
    ):
        partition("natural", play, 4, 0, min_examples=2)
    with pytest.raises(UmbelError, match="natural:largest or natural:random, got 'smallest'"):
        partition("natural:smallest", play, 2, 0)


def seen(strength: str) -> list[np.ndarray]:
    x = np.random.default_rng(0).normal(0.5, 0.2, (400, 50)).astype(np.float32)
    dataset = Dataset("patches", {"x": x, "y": np.zeros(400, np.float32)}, {}, np.zeros(400, int))
    fleet = partition(f"shift:{strength}", dataset, 8, 0)
    assert not any(fleet.examples(device)["y"].any() for device in range(8))
    return [fleet.examples(device)["x"] for device in range(8)]


def test_each_device_sees_with_its_own_contrast_and_brightness() -> None:
    views = seen("0.5")
    assert all(view.dtype == np.float32 for view in views)
    assert np.std([view.mean() for view in views]) > 0.03
    assert np.std([view.std() for view in views]) > 0.03
    hardly = seen("0.001")
    assert np.std([view.mean() for view in hardly]) < 0.01


def test_there_must_be_something_to_shift() -> None:
    whole = Dataset("text", {"x": np.zeros((9, 2), np.int32), "y": np.zeros(9, np.float32)}, {}, np.zeros(9, int))
    with pytest.raises(UmbelError, match="text has no input of floats to shift"):
        partition("shift:1", whole, 3, 0)
