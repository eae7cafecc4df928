"""Updates that may be read again: in memory, then in files."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from umbel.tensors import Tensors
from umbel_sim.simulation.kept_updates import KeptUpdates


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def delta(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    shapes = {"a/kernel": (5, 4), "b/bias": (4,), "c/scale": (), "d/none": (0, 3)}
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}


SIZE = sum(tensor.nbytes for tensor in delta(0).values())


def files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


@pytest.mark.parametrize("memory", [0, 10 * SIZE])
def test_an_update_reads_the_same_from_memory_and_from_files(folder: Path, memory: int) -> None:
    kept, given = KeptUpdates(memory), delta(1)
    pieces = kept.update("x", given, 1.5).pieces
    assert (files(folder) > 0) == (memory == 0)
    base = np.arange(7, dtype=np.float32)
    np.testing.assert_array_equal(pieces.weights("a/kernel", 3, 10, base), base + given["a/kernel"].reshape(-1)[3:10])
    np.testing.assert_array_equal(pieces.deltas("b/bias", np.array([3, 0])), given["b/bias"][[3, 0]])
    np.testing.assert_array_equal(pieces.weights("c/scale", 0, 1, base[:1]), base[:1] + given["c/scale"])
    assert pieces.weights("d/none", 0, 0, base[:0]).size == 0
    kept.close()


def test_memory_is_used_first_and_given_back(folder: Path) -> None:
    kept = KeptUpdates(2 * SIZE)
    for id in "abc":
        kept.update(id, delta(ord(id)), 1.5)
    assert files(folder) == 1  # c's
    kept.drop("a")
    kept.update("d", delta(4), 1.5)
    assert files(folder) == 1
    kept.drop("c")
    assert files(folder) == 0
    kept.drop("c")
    kept.drop("never")
    kept.close()


def test_closing_removes_every_file(folder: Path) -> None:
    kept = KeptUpdates(0)
    for number in range(5):
        kept.update(str(number), delta(number), 1.5)
    assert files(folder) == 5
    kept.close()
    assert list(folder.iterdir()) == []
    kept.close()
