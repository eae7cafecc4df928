"""Any order of the same updates gives the same bytes, and they are those that the exact sum gives."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.errors import TensorError
from umbel.tensors import Tensors, WeightSpec, dump
from umbel.updates import Pipeline
from umbel_server.aggregation import Buffers, Update, WeightPieces, from_blob, from_weights, order_free_sum, passes
from umbel_server.aggregation.mean import Mean
from umbel_server.aggregation.order_free_sum import BLOCK, OrderFreeSum
from umbel_server.aggregation.updates import NEAR
from umbel_server.storage.blobs import Blobs

SPECS = [WeightSpec("kernel", (3, 5)), WeightSpec("scale", ())]


@pytest.fixture(scope="module", params=["compiled", "numpy"], autouse=True)
def ways(request: pytest.FixtureRequest) -> Iterator[None]:
    library = passes.compiled
    if request.param == "numpy":
        passes.compiled = None
    else:
        request.getfixturevalue("library")
    yield
    passes.compiled = library


def update_of(rng: np.random.Generator, size: float, base: Tensors) -> Update:
    delta = {name: np.asarray(rng.normal(0, size, weight.shape), np.float32) for name, weight in base.items()}
    after = {name: weight.astype(np.float64) + delta[name] for name, weight in base.items()}
    return Update({name: after[name] - weight for name, weight in base.items()}, WeightPieces(after, base))


def folded(base: Tensors, updates: list[tuple[Update, float]], specs: list[WeightSpec] = SPECS) -> Tensors:
    mean = Mean(Pipeline(specs))
    for update, weight in updates:
        mean.add(update, weight)
    return mean.moved(base)


def exactly(base: Tensors, updates: list[tuple[Update, float]]) -> Tensors:
    """The documented formula on the exact sum, rounded once."""
    scale = 1.0 / float(sum(Fraction(weight) for _, weight in updates))
    made = {}
    for name, weight in base.items():
        flat = [update.delta[name].reshape(-1) for update, _ in updates]
        sums = [
            float(sum(Fraction(w) * Fraction(float(row[i])) for row, (_, w) in zip(flat, updates, strict=True)))
            for i in range(weight.size)
        ]
        made[name] = (np.array(sums) * scale + weight.reshape(-1)).astype(weight.dtype).reshape(weight.shape)
    return made


def same(ours: Tensors, others: Tensors) -> bool:
    return all(ours[name].tobytes() == others[name].tobytes() for name in ours)


@pytest.mark.parametrize("caution", [2.0, 2.0**40], ids=["as it is", "almost everything made again"])
@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-30, 30), st.floats(0.01, 5000)), min_size=1, max_size=14),
    st.floats(-20, 5),
    st.integers(0, 2**32),
)
def test_any_order_gives_the_bytes_of_the_exact_sum(
    caution: float, sizes: list[tuple[float, float]], level: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    base = {s.name: np.asarray(rng.normal(0, 2.0**level, s.shape), np.float32) for s in SPECS}
    updates = [(update_of(rng, 2.0**size, base), weight) for size, weight in sizes]
    shuffled = random.Random(seed).sample(updates, len(updates))
    before, order_free_sum.CAUTION = order_free_sum.CAUTION, caution
    try:
        first, second = folded(base, updates), folded(base, shuffled)
    finally:
        order_free_sum.CAUTION = before
    assert same(first, second)
    assert same(first, exactly(base, updates))


def test_updates_that_cancel_leave_what_is_left() -> None:
    rng = np.random.default_rng(3)
    base = {s.name: np.zeros(s.shape, np.float32) for s in SPECS}
    large = update_of(rng, 1e6, base)
    opposite = Update(
        {name: -delta for name, delta in large.delta.items()},
        WeightPieces({name: base[name] - delta for name, delta in large.delta.items()}, base),
    )
    small = update_of(rng, 1e-6, base)
    updates = [(large, 3.0), (small, 1.0), (opposite, 3.0)]
    assert same(folded(base, updates), exactly(base, updates))
    assert same(folded(base, updates[::-1]), exactly(base, updates))


def test_many_updates_of_a_tensor_of_several_blocks() -> None:
    specs = [WeightSpec("large", (2 * BLOCK + 7,))]
    rng = np.random.default_rng(4)
    base = {"large": np.asarray(rng.normal(0, 0.1, specs[0].shape), np.float32)}
    updates = [(update_of(rng, 0.01, base), float(rng.integers(1, 900))) for _ in range(41)]
    ours = folded(base, updates, specs)
    assert same(ours, folded(base, updates[::-1], specs))
    plain = base["large"] + sum(w * u.delta["large"] for u, w in updates) / sum(w for _, w in updates)
    np.testing.assert_allclose(ours["large"], plain, rtol=2e-7, atol=0)


def test_an_addend_of_another_size_is_refused() -> None:
    with pytest.raises(TensorError, match=r"3 elements was expected, got \[4\]"):
        OrderFreeSum(3).add_all([np.zeros(4, np.float32)], [1.0])


CAUTIONS = [order_free_sum.CAUTION, 2.0**20, 2.0**60]


@contextmanager
def caution(value: float) -> Iterator[None]:
    before, order_free_sum.CAUTION = order_free_sum.CAUTION, value
    try:
        yield
    finally:
        order_free_sum.CAUTION = before


def in_every_way(specs: list[WeightSpec], base: Tensors, updates: list[tuple[Update, float]]) -> Tensors:
    """The result, the same for several orders, from sums of every precision."""
    orders = [updates, updates[::-1], random.Random(1).sample(updates, len(updates))]
    results = []
    for value in CAUTIONS:
        with caution(value):
            results += [folded(base, order, specs) for order in orders]
    for other in results[1:]:
        assert same(results[0], other)
    return results[0]


elements = st.one_of(
    st.just(0.0),
    st.floats(-1, 1, width=32),
    st.builds(lambda x, e: float(np.float32(x * 2.0**e)), st.floats(-1, 1), st.integers(-30, 30)),
    st.sampled_from([2.0**-149, -(2.0**-149), 2.0**-75, 1e30, -1e30]),
)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.lists(elements, min_size=5, max_size=5), st.floats(0.01, 5000)), min_size=1, max_size=12),
    st.lists(st.sampled_from([0.0, -0.0, 0.1, -3.5, 2.0**-140]), min_size=5, max_size=5),
    st.booleans(),
)
def test_zeros_ties_and_cancellation_are_exact(
    rows: list[tuple[list[float], float]], weights: list[float], cancelled: bool
) -> None:
    specs, base = [WeightSpec("w", (5,))], {"w": np.array(weights, np.float32)}
    rows = rows + [([-x for x in row], weight) for row, weight in rows[:-1]] if cancelled else rows
    updates = [(delta_update({"w": np.array(row, np.float32)}), weight) for row, weight in rows]
    ours = in_every_way(specs, base, updates)
    np.testing.assert_array_equal(ours["w"], exactly(base, updates)["w"])


def delta_update(delta: Tensors) -> Update:
    """The update of a device that was given zeros, so that its float32 delta is read again as it is."""
    return Update(delta, WeightPieces(delta, {name: np.zeros_like(value) for name, value in delta.items()}))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 200])
def test_blobs_are_read_again_where_it_matters(count: int, tmp_path: Path) -> None:
    size = BLOCK + 2 * NEAR
    specs, blobs, rng = [WeightSpec("a", (3,)), WeightSpec("w", (size,))], Blobs(tmp_path.as_uri()), Random(count)
    base = {"a": np.zeros(3, np.float32), "w": np.full(size, 0.1, np.float32)}
    base["w"][[0, 7, size - 1]] = 0.0  # these are not sure: what they get is far below their block's errors
    updates = []
    for _ in range(count):
        delta = {name: np.asarray(normal(rng, weight.size), np.float32) for name, weight in base.items()}
        delta["w"][[0, 7, size - 1]] = [0.0, 2.0**-60, -(2.0**-70)]
        updates.append((from_blob(Pipeline(specs), blobs, blobs.put(dump(delta)), Buffers()), rng.uniform(0.1, 90)))
    ours = folded(base, updates, specs)
    assert same(ours, folded(base, updates[::-1], specs))
    assert ours["w"][[0, 7, size - 1]].tolist() == pytest.approx([0.0, 2.0**-60, -(2.0**-70)], rel=1e-6, abs=0)
    with caution(2.0**60):
        chosen = updates[:5]
        again = folded(base, chosen, specs)
    assert same(again, folded(base, chosen, specs))


def normal(rng: Random, size: int) -> np.ndarray:
    return np.random.default_rng(rng.getrandbits(32)).normal(0, 0.01, size)


def test_a_stale_update_is_read_again_against_the_weights_its_device_was_given() -> None:
    rng = np.random.default_rng(5)
    specs = [WeightSpec("w", (50,))]
    bases = [{"w": rng.normal(size=50).astype(np.float32)} for _ in range(3)]
    updates = [
        (from_weights({"w": rng.normal(size=50).astype(np.float32)}, bases[k % 3]), 1.0 / (1 + k)) for k in range(9)
    ]
    assert same(in_every_way(specs, bases[0], updates), exactly(bases[0], updates))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_weights_of_other_dtypes(dtype: str) -> None:
    rng = np.random.default_rng(6)
    specs, base = [WeightSpec("w", (40,), dtype)], {"w": (rng.normal(size=40) * 9).astype(dtype)}
    updates = [
        (from_weights({"w": (rng.normal(size=40) * 9).astype(dtype)}, base), float(rng.uniform(1, 9)))
        for _ in range(11)
    ]
    assert same(in_every_way(specs, base, updates), exactly(base, updates))


def test_what_is_read_before_the_end_changes_nothing() -> None:
    rng = np.random.default_rng(7)
    base = {s.name: np.zeros(s.shape, np.float32) for s in SPECS}
    updates = [(update_of(rng, 1.0, base), 1.0 + k) for k in range(150)]
    mean = Mean(Pipeline(SPECS))
    for update, weight in updates:
        mean.add(update, weight)
        mean.moved(base)
    assert same(mean.moved(base), folded(base, updates))
    assert same(mean.moved(base), exactly(base, updates))
    mean.clear()
    mean.add(*updates[3])
    assert same(mean.moved(base), exactly(base, updates[3:4]))


def test_the_bound_holds() -> None:
    rng, size = np.random.default_rng(8), BLOCK + 5
    for scale in (1e-30, 1e-3, 1e15):
        total, addends = OrderFreeSum(size), []
        for _ in range(50):
            group = [(rng.normal(0, scale, size).astype(np.float32), float(rng.uniform(0.1, 900))) for _ in range(4)]
            total.add_all([values for values, _ in group], [weight for _, weight in group])
            addends += group
        sums, errors = total.bounded()
        for index in (0, 9, BLOCK - 1, BLOCK, BLOCK + 4):
            sum_ = sum((Fraction(float(v[index])) * Fraction(w) for v, w in addends), Fraction(0))
            error = Fraction(float(errors[index // BLOCK]))
            assert abs(Fraction(float(sums[index])) - sum_) <= error


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_and_weights_out_of_range_are_refused(broken: float) -> None:
    values = np.zeros(5, np.float32)
    values[3] = broken
    with pytest.raises(TensorError, match="NaN, infinity"):
        OrderFreeSum(5).add_all([values], [1.0])
    for weight in (0.0, -1.0, broken):
        with pytest.raises(TensorError, match="weight"):
            OrderFreeSum(2).add_all([np.ones(2)], [weight])


class Counted(WeightPieces):
    """Pieces that know how often they were asked for."""

    times = 0

    def deltas(self, name: str, index: np.ndarray) -> np.ndarray:
        self.times += 1
        return super().deltas(name, index)


def test_elements_that_one_update_makes_unsure_are_read_again_in_one_go_however_many_updates_there_are() -> None:
    """One device can send an update so uneven that no sum is sure; it must not cost a read for every few elements."""
    rng, size = np.random.default_rng(11), 2 * BLOCK
    specs, base = [WeightSpec("w", (size,))], {"w": rng.normal(0, 0.05, size).astype(np.float32)}
    deltas = [{"w": rng.normal(0, 1e-3, size).astype(np.float32)} for _ in range(40)]
    deltas[7]["w"][[3, BLOCK + 3]] = 1e9
    zeros = {"w": np.zeros_like(base["w"])}
    updates = [(Update(delta, Counted(delta, zeros)), float(rng.uniform(1, 600))) for delta in deltas]
    ours = folded(base, updates, specs)
    assert {pieces.times for update, _ in updates if isinstance(pieces := update.pieces, Counted)} == {1}
    some = [0, 3, 4, BLOCK + 3, size - 1]
    few = [({"w": delta["w"][some]}, weight) for delta, (_, weight) in zip(deltas, updates, strict=True)]
    expected = exactly({"w": base["w"][some]}, [(delta_update(delta), weight) for delta, weight in few])
    np.testing.assert_array_equal(ours["w"][some], expected["w"])


class Unread(WeightPieces):
    """Pieces that nobody asks for."""

    def __init__(self) -> None:
        super().__init__({}, {})

    def deltas(self, name: str, index: np.ndarray) -> np.ndarray:
        raise AssertionError(f"{index.size} elements of {name} were made again")


def float32_update(rng: np.random.Generator, base: Tensors, digits: int) -> tuple[Tensors, Tensors]:
    """A delta of multiples of 2**-digits, and the weights after it."""
    delta = {n: (rng.integers(-99, 99, w.shape) * 2.0**-digits).astype(np.float32) for n, w in base.items()}
    return delta, {name: weight.astype(np.float64) + delta[name] for name, weight in base.items()}


@settings(max_examples=40)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40), st.integers(20, 60), st.integers(0, 2**32))
def test_sums_that_rounded_nothing_are_exact_ties_and_all(weights: list[int], digits: int, seed: int) -> None:
    """With as many updates of the same weight half of the results lie between two floats."""
    rng = np.random.default_rng(seed)
    base = {"kernel": rng.normal(0, 0.05, (3, 5)).astype(np.float32), "scale": np.float32(0.5) * np.ones(())}
    base = {name: np.asarray(weight, np.float32) for name, weight in base.items()}
    made = [float32_update(rng, base, digits) for _ in weights]
    pieces = Unread() if passes.compiled is not None else None
    updates = [
        (Update(delta, pieces or WeightPieces(after, base)), float(weight))
        for (delta, after), weight in zip(made, weights, strict=True)
    ]
    expected = exactly(base, updates)
    assert same(folded(base, updates), expected)
    assert same(folded(base, updates[::-1]), expected)


@pytest.mark.usefixtures("library")
@settings(max_examples=40)
@given(st.lists(st.floats(0.01, 5000), min_size=2, max_size=12), st.integers(0, 2**32))
def test_float32_updates_give_what_the_exact_sum_gives(weights: list[float], seed: int) -> None:
    """Weights with many digits, and whole ones with sums that are rounded after all."""
    rng = np.random.default_rng(seed)
    base = {"kernel": rng.normal(0, 0.05, (3, 5)).astype(np.float32), "scale": np.ones((), np.float32)}
    for some in (weights, [math.ceil(weight) for weight in weights]):
        updates = []
        for weight in some:
            wide = 10.0 ** rng.uniform(-12, 4)
            delta = {name: np.asarray(rng.normal(0, wide, own.shape), np.float32) for name, own in base.items()}
            pieces = WeightPieces(delta, {name: np.zeros(own.shape) for name, own in base.items()})
            updates.append((Update(delta, pieces), float(weight)))
        expected = exactly(base, updates)
        assert same(folded(base, updates), expected)
        assert same(folded(base, updates[::-1]), expected)
