"""Any order of the same addends gives the same bytes, and they are those of the exact sum to far below float32."""

import itertools
import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from umbel.errors import TensorError
from umbel_server.aggregation import indexed_sum
from umbel_server.aggregation.indexed_sum import BLOCK, IndexedSum

Addend = tuple[NDArray[np.floating], float]

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
weights = st.one_of(st.floats(1e-3, 1e6), st.integers(1, 10_000).map(float))
addends = st.lists(st.tuples(hnp.arrays(np.float32, 7, elements=floats), weights), min_size=1, max_size=12)


def total(addends: list[Addend], shape: tuple[int, ...] | None = None) -> NDArray[np.float64]:
    folded = IndexedSum(addends[0][0].shape if shape is None else shape)
    for values, weight in addends:
        folded.add(values, weight)
    return folded.total()


def exact(addends: list[Addend], index: int) -> Fraction:
    return sum((Fraction(float(np.float64(v[index]) * w)) for v, w in addends), Fraction(0))


def largest(addends: list[Addend]) -> float:
    return max(float(np.abs(values.astype(np.float64) * weight).max()) for values, weight in addends)


@given(addends, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_any_permutation_gives_the_same_bytes(addends: list[Addend], random: Random) -> None:
    first = total(addends).tobytes()
    shuffled = list(addends)
    for _ in range(3):
        random.shuffle(shuffled)
        assert total(shuffled).tobytes() == first


@given(addends)
@settings(max_examples=200, deadline=None)
def test_the_sum_is_the_exact_one_to_far_below_float32(addends: list[Addend]) -> None:
    found, bound = total(addends), Fraction(largest(addends)) * len(addends) / 2**35
    for index, value in enumerate(found):
        assert abs(Fraction(float(value)) - exact(addends, index)) <= bound


def test_ties_are_rounded_by_the_addend_alone() -> None:
    # Halves of the grid under 1: what rounding in the accumulator would send this way or that.
    grid = 2.0 ** (indexed_sum.STEP - indexed_sum.DIGIT)
    ties = [np.array([0.75, (n + 0.5) * grid]) for n in range(6)]
    assert len({total([(tie, 1.0) for tie in order]).tobytes() for order in itertools.permutations(ties)}) == 1


def test_levels_come_and_go_by_the_set_alone() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.normal(size=5) * 2.0**exponent, 1.0) for exponent in (-600, -300, -90, -40, -17, 0, 15, 16, 33, 300)]
    expected = total(parts)
    for seed in range(200):
        order = [parts[i] for i in np.random.default_rng(seed).permutation(len(parts))]
        np.testing.assert_array_equal(total(order).view(np.int64), expected.view(np.int64))
    folded = IndexedSum((5,))
    for part, _ in parts:
        folded.add(part)
    assert len(folded._levels[0]) <= indexed_sum.KEPT


def test_many_addends_carry_exactly() -> None:
    count = 3 * indexed_sum.CARRY_AFTER + 5
    value = np.array([1.0 - 2.0**-24, -(1.0 - 2.0**-24), 2.0**-20, 0.0], np.float32)
    folded = IndexedSum((4,))
    for _ in range(count):
        folded.add(value, 65535.0)
    expected = [float(Fraction(float(v)) * 65535 * count) for v in value]
    np.testing.assert_array_equal(folded.total(), expected)


def test_a_sum_that_was_read_goes_on_as_one_that_was_not() -> None:
    rng = np.random.default_rng(1)
    parts = [(rng.normal(size=(3, 2)), float(w)) for w in range(1, 9)]
    read = IndexedSum((3, 2))
    for values, weight in parts:
        read.add(values, weight)
        read.total()
    assert read.total().tobytes() == total(parts).tobytes()


def test_arrays_of_many_blocks_equal_float64_sums() -> None:
    rng = np.random.default_rng(2)
    size = 3 * BLOCK + 17
    parts = [(rng.normal(size=size, scale=10.0**-k).astype(np.float32), 10.0 + k) for k in range(5)]
    expected = sum(values.astype(np.float64) * weight for values, weight in parts)
    np.testing.assert_allclose(total(parts), expected, rtol=0, atol=5 * 50 * 2.0**-35)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3, 4)])
def test_every_shape(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 0.5, np.float32)
    found = total([(values, 2.0), (values, 4.0)], shape)
    assert found.shape == shape
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.full(shape, 3.0))


def test_zeros_subnormals_and_integers() -> None:
    assert total([(np.zeros(3, np.float32), 5.0), (-np.zeros(3, np.float32), 5.0)]).tobytes() == np.zeros(3).tobytes()
    tiny = np.array([2.0**-149, -(2.0**-149), 0.0], np.float32)
    np.testing.assert_array_equal(total([(tiny, 3.0)] * 7), np.array([21.0, -21.0, 0.0]) * 2.0**-149)
    np.testing.assert_array_equal(total([(np.array([3, -4]), 1.5)]), [4.5, -6.0])
    np.testing.assert_array_equal(total([(np.array([2.0**-1070]), 1.0)]), [0.0])


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(broken: float) -> None:
    values = np.zeros(5, np.float32)
    values[3] = broken
    with pytest.raises(TensorError, match="NaN, infinity"):
        total([(values, 1.0)])


def test_other_shapes_and_weights_are_refused() -> None:
    with pytest.raises(TensorError, match=r"shape \[3\] was expected, got \[2\]"):
        total([(np.zeros(2), 1.0)], (3,))
    for weight in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(TensorError, match="weight"):
            total([(np.ones(2), weight)])
