"""Data by name, and what is common to all of it."""

from pathlib import Path

import numpy as np
import pytest

from umbel.errors import UmbelError
from umbel_sim.data import Dataset, hold_out, load
from umbel_sim.data.labels import labels_of, owners_of


@pytest.mark.parametrize("source", ["penguins", "", "shards:2", "data.csv"])
def test_unknown_data_is_answered_with_what_is_known(source: str) -> None:
    with pytest.raises(
        UmbelError, match=f"no data called '{source}'; there are digits, .*mnist.*shakespeare.*FILE.npz"
    ):
        load(source)


@pytest.mark.parametrize("name", ["none.npz", "none.parquet"])
def test_a_file_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UmbelError, match=f"{name}: no such file"):
        load(str(tmp_path / name))


def test_a_share_can_be_held_out() -> None:
    y = np.arange(50)
    whole = Dataset("numbers", {"x": y * 2, "y": y}, {}, y, y % 3, ("a", "b", "c"))
    part = hold_out(whole, 0.2, seed=1)
    assert (part.count, len(part.test["y"]), part.owners) == (40, 10, 3)
    assert sorted([*part.train["y"], *part.test["y"]]) == y.tolist()
    assert np.array_equal(part.labels, part.train["y"])
    assert np.array_equal(part.keys, part.train["y"] % 3)
    assert np.array_equal(hold_out(whole, 0.2, seed=1).test["x"], part.test["x"])
    assert not np.array_equal(hold_out(whole, 0.2, seed=2).test["x"], part.test["x"])
    for share in (0.0, 1.0, -1.0, 0.001, float("nan")):
        with pytest.raises(UmbelError, match="the held-out share lies between 0 and 1"):
            hold_out(whole, share, seed=0)


def test_arrays_of_different_lengths_are_no_data_set() -> None:
    with pytest.raises(UmbelError, match=r"same number of examples, at least 1; got .*'x': 3"):
        Dataset("odd", {"x": np.zeros(3)}, {}, np.zeros(2, int))
    with pytest.raises(UmbelError, match="at least 1"):
        Dataset("empty", {"x": np.zeros(0)}, {}, np.zeros(0, int))


@pytest.mark.parametrize(
    ("targets", "labels"),
    [
        (np.array([3, 1, 2], np.uint8), [3, 1, 2]),
        (np.array([[3], [1]]), [3, 1]),
        (np.array([True, False]), [1, 0]),
        (np.array([1.0, 0.0], np.float32), [1, 0]),
        (np.float32([[0, 1, 0], [1, 0, 0]]), [1, 0]),
        (np.array([[5, 6], [6, 7]]), [0, 0]),
        (np.linspace(0, 1, 20) ** 2, np.repeat(np.arange(10), 2).tolist()),
    ],
)
def test_labels_are_the_classes_of_targets(targets: np.ndarray, labels: list[int]) -> None:
    assert labels_of(targets).tolist() == labels


def test_sequences_have_their_owner_as_label() -> None:
    keys, names = owners_of(np.array(["b", "a", "b"]))
    assert (keys.tolist(), names) == ([1, 0, 1], ("a", "b"))
    assert labels_of(np.ones((3, 4), int), keys).tolist() == [1, 0, 1]
