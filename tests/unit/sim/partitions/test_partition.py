"""Every partition: what it promises of any data, fleet and seed, and how it refuses what cannot be."""

import pickle
import tracemalloc
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.errors import UmbelError
from umbel_sim.data.dataset import Dataset
from umbel_sim.partitions import PARTITIONS, Fleet, partition

SHARED_OUT = (
    "iid",
    "iid:quantity=2",
    "dirichlet:0.3",
    "dirichlet:100",
    "dirichlet:0.001",
    "dirichlet:0.3,quantity=1",
    "shards:1",
    "shards:2",
    "quantity:1.0",
    "quantity:5",
    "shift:0.5",
    "shift:0.5,quantity=1",
)
DRAWN = ("iid:7", "iid:7,quantity=1", "dirichlet:0.3,each=7", "dirichlet:0.3,each=7,quantity=1")


def numbered(rows: int, classes: int, seed: int = 0, owners: int = 0) -> Dataset:
    """Examples whose target is their number, so that a fleet shows which ones it has."""
    rng = np.random.default_rng(seed)
    return Dataset(
        "numbers",
        {"x": rng.random((rows, 3), np.float32), "y": np.arange(rows)},
        {},
        rng.integers(0, classes, rows),
        rng.integers(0, owners, rows) if owners else None,
        tuple(f"role {owner}" for owner in range(owners)),
    )


def rows_of(fleet: Fleet) -> list[list[int]]:
    return [fleet.examples(device)["y"].tolist() for device in range(fleet.devices)]


@settings(max_examples=60)
@given(
    spec=st.sampled_from(SHARED_OUT),
    devices=st.integers(1, 12),
    more=st.integers(0, 150),
    classes=st.integers(1, 6),
    seed=st.integers(0, 2**40),
)
def test_what_is_shared_out_goes_to_exactly_one_device(
    spec: str, devices: int, more: int, classes: int, seed: int
) -> None:
    dataset = numbered(2 * devices + more, classes)
    fleet = partition(spec, dataset, devices, seed)
    rows = rows_of(fleet)
    assert sorted(chain.from_iterable(rows)) == list(range(dataset.count))
    assert [len(of_device) for of_device in rows] == [fleet.size(device) for device in range(devices)]
    assert rows == rows_of(partition(spec, dataset, devices, seed))


@settings(max_examples=40)
@given(
    spec=st.sampled_from((*SHARED_OUT, *DRAWN)),
    devices=st.integers(1, 10),
    minimum=st.integers(0, 7),
    seed=st.integers(0, 99),
)
def test_no_device_has_fewer_examples_than_it_should(spec: str, devices: int, minimum: int, seed: int) -> None:
    fleet = partition(spec, numbered(100, 4), devices, seed, minimum)
    assert min(fleet.size(device) for device in range(devices)) >= minimum


@settings(max_examples=40)
@given(spec=st.sampled_from(DRAWN), devices=st.integers(1, 40), seed=st.integers(0, 99))
def test_what_is_drawn_may_be_had_twice_but_not_by_one_device(spec: str, devices: int, seed: int) -> None:
    fleet = partition(spec, numbered(50, 4), devices, seed)
    rows = rows_of(fleet)
    assert all(len(set(of_device)) == len(of_device) == fleet.size(d) for d, of_device in enumerate(rows))
    assert rows == rows_of(partition(spec, numbered(50, 4), devices, seed))
    if "quantity" not in spec:
        assert {len(of_device) for of_device in rows} == {7}


@pytest.mark.parametrize("spec", [*SHARED_OUT, *DRAWN, "dirichlet:1,by=label", "natural:random"])
def test_the_same_seed_gives_the_same_bytes_in_any_process_and_another_seed_others(spec: str) -> None:
    dataset = numbered(300, 5, owners=30)
    fleet = partition(spec, dataset, 10, 3)
    copy = pickle.loads(pickle.dumps(fleet))
    for device in (9, 0):  # in another order: nothing depends on what was asked before
        first, second = fleet.examples(device), copy.examples(device)
        assert {name: array.tobytes() for name, array in first.items()} == {
            name: array.tobytes() for name, array in second.items()
        }
    assert rows_of(partition(spec, dataset, 10, 4)) != rows_of(fleet)


def test_examples_are_copies() -> None:
    fleet = partition("iid", numbered(20, 2), 2, 0)
    before = fleet.examples(0)["x"].copy()
    fleet.examples(0)["x"][:] = 0
    assert np.array_equal(fleet.examples(0)["x"], before)


def test_a_hundred_thousand_devices_are_a_few_arrays() -> None:
    dataset = numbered(60_000, 10)
    for spec in ("iid:100", "dirichlet:0.3,each=100"):
        tracemalloc.start()
        fleet = partition(spec, dataset, 100_000, 0)
        statistics = fleet.statistics(50)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16 * 2**20
        assert (statistics.devices, statistics.sizes.min, statistics.sizes.max) == (100_000, 100, 100)
        assert statistics.histogram.shape == (50, 10)
        assert statistics.histogram.sum(axis=1).tolist() == [100] * 50
        assert len(fleet.examples(99_999)["y"]) == 100


def test_statistics_count_what_the_devices_have() -> None:
    dataset = numbered(200, 4)
    fleet = partition("shards:1", dataset, 8, 0)
    statistics = fleet.statistics()
    for device in range(8):
        counted = np.bincount(dataset.labels[fleet.examples(device)["y"]], minlength=4)
        assert statistics.histogram[device].tolist() == counted.tolist()
    assert (statistics.sizes.min, statistics.sizes.median, statistics.sizes.max) == (25, 25.0, 25)
    assert statistics.labels.max <= 2
    assert statistics.classes.tolist() == [0, 1, 2, 3]
    few = fleet.statistics(3)
    assert few.sampled.tolist() == [0, 3, 7]
    assert few.sizes == statistics.sizes


def test_there_is_no_device_before_the_first_or_after_the_last() -> None:
    fleet = partition("iid", numbered(10, 2), 2, 0)
    for device in (-1, 2):
        with pytest.raises(IndexError, match="a fleet of 2"):
            fleet.examples(device)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("zipf:2", r"no partition 'zipf'; there are iid\[:N\].*shards:K"),
        ("", "no partition ''"),
        ("iid:", r"expected a parameter after the colon.*write iid\[:N\]"),
        ("iid:0", "whole number of at least 1, got '0'"),
        ("iid:101", "at most the 100 training examples of numbers a device"),
        ("iid:5,alpha=3", "expected nothing but quantity=..., got 'alpha=3'"),
        ("iid:5,quantity=1,quantity=2", "got 'quantity=2'"),
        ("shards:2.5", "expected K shards a device, a whole number of at least 1, got '2.5'; write shards:K"),
        ("shards:20", "10 devices with 20 shards each need 200 examples, numbers has 100"),
        ("shards:2,quantity=1", "expected no such part, got 'quantity=1'"),
        ("dirichlet:-1", "expected ALPHA, a positive number, got '-1'"),
        ("dirichlet:nan", "positive number"),
        ("dirichlet:1e-9", "ALPHA from 0.001"),
        ("dirichlet:1,by=colour", "by=device or by=label, got 'colour'"),
        ("dirichlet:1,by=label,each=3", "neither each nor quantity beside by=label"),
        ("dirichlet:1,each=101", "at most the 100"),
        ("quantity:inf", "expected SIGMA, a positive number"),
        ("shift:much", "expected STRENGTH"),
        ("shift:11", "STRENGTH of at most 10, got '11'"),
        ("natural", "numbers does not say who owns which example"),
    ],
)
def test_what_is_not_understood_is_answered_with_the_grammar(spec: str, sentence: str) -> None:
    with pytest.raises(UmbelError, match=sentence):
        partition(spec, numbered(100, 4), 10, 0)


@pytest.mark.parametrize("spec", [*SHARED_OUT, "dirichlet:1,by=label"])
def test_more_devices_than_examples_are_refused(spec: str) -> None:
    with pytest.raises(UmbelError, match="take fewer devices"):
        partition(spec, numbered(100, 4), 101, 0)


def test_a_device_with_too_few_examples_is_named() -> None:
    with pytest.raises(
        UmbelError, match=r"device 0 would have 10 of the examples.*lower --min-examples, take fewer dev"
    ):
        partition("shards:1", numbered(95, 4), 9, 0, 11)
    with pytest.raises(UmbelError, match=r"each need 110, there are 100.*--min-examples"):
        partition("iid", numbered(100, 4), 10, 0, 11)


@pytest.mark.parametrize(("devices", "seed", "minimum"), [(0, 0, 1), (1, -1, 1), (1, 0, -1)])
def test_numbers_that_make_no_sense_are_refused(devices: int, seed: int, minimum: int) -> None:
    with pytest.raises(UmbelError, match="a fleet has at least 1 device"):
        partition("iid", numbered(10, 2), devices, seed, minimum)


def test_an_empty_device_can_be_allowed() -> None:
    assert rows_of(partition("iid", numbered(2, 2), 3, 0, min_examples=0)).count([]) == 1


def test_every_partition_says_what_it_does() -> None:
    assert all(name in chosen.grammar and chosen.meaning for name, chosen in PARTITIONS.items())
