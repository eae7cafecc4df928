import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel import UmbelError
from umbel.tensors import Tensors, WeightSpec
from umbel_server.aggregation.fixed_point import CHUNK, FixedPointSum
from umbel_server.aggregation.vetting import Vetting

SPECS = [WeightSpec("kernel", (3, 5)), WeightSpec("bias", (2,)), WeightSpec("scale", ())]


def summed(updates: dict[str, tuple[float, Tensors]], order: list[str], specs: list[WeightSpec] = SPECS) -> Tensors:
    total = FixedPointSum(specs, lambda id: updates[id][1])
    vetting = Vetting(specs)
    for id in order:
        weight, update = updates[id]
        total.add(id, update, weight, vetting.vet(id, update, 1))
    return dict(total.sums())


def update_of(rng: np.random.Generator, magnitude: float, specs: list[WeightSpec] = SPECS) -> Tensors:
    return {s.name: np.asarray(rng.normal(0, magnitude, s.shape), np.float32) for s in specs}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-30, 30), st.one_of(st.integers(1, 5000), st.integers(1, 10**6).map(lambda n: n / 16))),
        min_size=1,
        max_size=40,
    ),
    st.integers(0, 2**32),
)
def test_any_order_gives_the_same_bytes(sizes: list[tuple[float, float]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    updates = {str(i): (float(weight), update_of(rng, 2.0**size)) for i, (size, weight) in enumerate(sizes)}
    order = list(updates)
    first = summed(updates, order)
    random.Random(seed).shuffle(order)
    second = summed(updates, order)
    assert {name: value.tobytes() for name, value in first.items()} == {
        name: value.tobytes() for name, value in second.items()
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.floats(-12, 6), st.integers(0, 2**32))
def test_the_sum_is_right_to_far_below_a_float32(count: int, size: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    updates = {str(i): (float(rng.integers(1, 3000)), update_of(rng, 2.0**size)) for i in range(count)}
    ours = summed(updates, list(updates))
    total = math.fsum(weight for weight, _ in updates.values())
    for spec in SPECS:
        rows = [(weight, np.ravel(update[spec.name])) for weight, update in updates.values()]
        peak = max(float(np.abs(row).max()) for _, row in rows)
        for index in range(math.prod(spec.shape)):
            exact = math.fsum(weight * float(row[index]) for weight, row in rows)
            assert abs(ours[spec.name][index] - exact) / total <= peak * 2.0**-28


def test_a_larger_update_late_is_as_if_it_had_been_known_at_first() -> None:
    rng = np.random.default_rng(1)
    updates = {str(i): (3.0, update_of(rng, 1e-6)) for i in range(20)} | {"large": (7.0, update_of(rng, 1e6))}
    late = summed(updates, list(updates))
    early = summed(updates, list(reversed(updates)))
    assert all(np.array_equal(late[name], early[name]) for name in late)


def test_float64_updates_are_summed_too() -> None:
    rng = np.random.default_rng(2)
    updates = {
        str(i): (2.0, {name: value.astype(np.float64) / 3 for name, value in update_of(rng, 1.0).items()})
        for i in range(9)
    }
    ours = summed(updates, list(updates))
    for name, value in ours.items():
        exact = sum(2.0 * np.ravel(update[name]) for _, update in updates.values())
        np.testing.assert_allclose(value, exact, rtol=0, atol=1e-7)


def test_many_examples_take_bits_from_the_coordinates_and_stay_right() -> None:
    rng = np.random.default_rng(3)
    updates = {str(i): (2.0**25, update_of(rng, 1.0)) for i in range(12)}
    order = list(updates)
    ours, backwards = summed(updates, order), summed(updates, order[::-1])
    for name, value in ours.items():
        assert np.array_equal(value, backwards[name])
        exact = sum(np.float64(2.0**25) * np.ravel(update[name]) for _, update in updates.values())
        np.testing.assert_allclose(value / (12 * 2.0**25), exact / (12 * 2.0**25), rtol=0, atol=2.0**-20)


def test_a_large_tensor_is_shared_by_threads_and_is_the_same() -> None:
    spec = WeightSpec("large", (13 * CHUNK + 7, 2))
    rng = np.random.default_rng(4)
    updates = {str(i): (float(i + 1), update_of(rng, 0.1, [spec])) for i in range(10)}
    order = list(updates)
    ours = summed(updates, order, [spec])["large"]
    assert np.array_equal(ours, summed(updates, order[::-1], [spec])["large"])
    exact = sum(weight * np.ravel(update["large"]).astype(np.float64) for weight, update in updates.values())
    np.testing.assert_allclose(ours, exact, rtol=0, atol=55 * 2.0**-28)


@pytest.mark.parametrize("weight", [0.0, -1.0, 0.3, math.inf, math.nan])
def test_a_weight_that_cannot_be_summed_exactly_is_refused(weight: float) -> None:
    total = FixedPointSum(SPECS, lambda id: {})
    with pytest.raises(UmbelError, match=r"positive multiple of 0\.0625"):
        total.add("a", {}, weight, {})


def test_more_examples_than_fit_are_refused() -> None:
    rng = np.random.default_rng(5)
    with pytest.raises(UmbelError, match=r"may be 6\.87e\+10 in all"):
        summed({"a": (2.0**37, update_of(rng, 1.0))}, ["a"])


def test_what_is_cleared_is_forgotten() -> None:
    rng = np.random.default_rng(6)
    update = update_of(rng, 1.0)
    total, vetting = FixedPointSum(SPECS, lambda id: update), Vetting(SPECS)
    total.add("a", update, 1.0, vetting.vet("a", update, 1))
    total.sums()
    total.clear()
    assert total.weights == []
    assert all(not value.any() for value in total.sums().values())
