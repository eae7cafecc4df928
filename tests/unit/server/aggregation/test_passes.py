import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel_server.aggregation import passes
from umbel_server.aggregation.passes import BLOCK, ROWS, fold, squares


@pytest.fixture(params=["compiled", "numpy"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(passes, "compiled", None)
    else:
        request.getfixturevalue("library")
    return str(request.param)


def normal(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 200, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5, 300_001])
def test_squares_are_right_for_every_size(ways: str, size: int) -> None:
    values = normal(size)
    assert squares(values) == pytest.approx(float(np.sum(values.astype(np.float64) ** 2)), rel=1e-5)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 70_000, 299_999])
def test_one_value_that_is_not_finite_shows(ways: str, broken: float, place: int) -> None:
    values = normal(300_000)
    values[place] = broken
    assert not np.isfinite(squares(values))
    sums = np.zeros(values.size)
    assert not np.isfinite(fold([normal(values.size), values], np.ones(2), sums)[0][1]).all()


def test_squares_of_the_smallest_and_largest_floats_are_finite_and_not_lost(ways: str) -> None:
    assert squares(np.full(1000, 3e38, np.float32)) == pytest.approx(1000 * float(np.float32(3e38)) ** 2)
    assert squares(np.full(1000, 1e-40, np.float32)) == pytest.approx(1000 * float(np.float32(1e-40)) ** 2)


@pytest.mark.parametrize("size", [1, 100, BLOCK, BLOCK + 1, 300_001])
@pytest.mark.parametrize("count", range(1, ROWS + 1))
def test_a_fold_adds_the_weighted_rows_and_tells_the_squares_of_each_block(ways: str, size: int, count: int) -> None:
    rows = [normal(size, seed) for seed in range(count)]
    weights, sums = np.arange(1.0, count + 1.0), np.full(size, 0.5)
    found, _ = fold(rows, weights, sums)
    exact = 0.5 + sum(weight * row.astype(np.float64) for weight, row in zip(weights, rows, strict=True))
    np.testing.assert_allclose(sums, exact, rtol=0, atol=1e-13)
    assert found.shape == (count, -(-size // BLOCK))
    for row, own in zip(rows, found, strict=True):
        starts = range(0, size, BLOCK)
        blocks = [np.sum(row[start : start + BLOCK].astype(np.float64) ** 2) for start in starts]
        np.testing.assert_allclose(own, blocks, rtol=1e-4)


def test_other_dtypes_and_strides_are_folded_too(ways: str) -> None:
    rows = [np.arange(1000.0), np.arange(1000, dtype=np.int32), np.arange(2000, dtype=np.float32)[::2]]
    sums = np.zeros(1000)
    fold(rows, np.ones(3), sums)
    np.testing.assert_array_equal(sums, np.arange(1000) * 4.0)
    assert squares(rows[2]) == pytest.approx(squares(np.ascontiguousarray(rows[2])), rel=1e-6)


@pytest.mark.usefixtures("library")
@settings(max_examples=50)
@given(st.integers(1, 5000), st.integers(1, ROWS), st.integers(0, 2**32 - 1))
def test_compiled_and_numpy_differ_in_the_last_bits_alone(size: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, weights = [normal(size, seed + row) for row in range(count)], rng.uniform(0.1, 600.0, count)
    ours, theirs = np.zeros(size), np.zeros(size)
    compiled, _ = fold(rows, weights, ours)
    plain = passes.fold_with_numpy(rows, weights, theirs)
    reach = sum(weight * np.abs(row) for weight, row in zip(weights, rows, strict=True))
    assert (np.abs(ours - theirs) <= 2 * ROWS * 2.0**-53 * reach).all()
    np.testing.assert_allclose(compiled, plain, rtol=1e-4)
