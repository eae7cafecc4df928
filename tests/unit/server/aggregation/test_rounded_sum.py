import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.errors import TensorError
from umbel.tensors import Tensors, WeightSpec
from umbel_server.aggregation import Update, WeightPieces, rounded_sum
from umbel_server.aggregation.mean import Mean
from umbel_server.aggregation.rounded_sum import BLOCK, RoundedSum

SPECS = [WeightSpec("kernel", (3, 5)), WeightSpec("scale", ())]


def update_of(rng: np.random.Generator, size: float, base: Tensors) -> Update:
    delta = {name: np.asarray(rng.normal(0, size, weight.shape), np.float32) for name, weight in base.items()}
    after = {name: weight.astype(np.float64) + delta[name] for name, weight in base.items()}
    return Update({name: after[name] - weight for name, weight in base.items()}, WeightPieces(after))


def folded(base: Tensors, updates: list[tuple[Update, float]], specs: list[WeightSpec] = SPECS) -> Tensors:
    mean = Mean(specs)
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
@settings(max_examples=60, deadline=None)
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
    before, rounded_sum.CAUTION = rounded_sum.CAUTION, caution
    try:
        first, second = folded(base, updates), folded(base, shuffled)
    finally:
        rounded_sum.CAUTION = before
    assert same(first, second)
    assert same(first, exactly(base, updates))


def test_updates_that_cancel_leave_what_is_left() -> None:
    rng = np.random.default_rng(3)
    base = {s.name: np.zeros(s.shape, np.float32) for s in SPECS}
    large = update_of(rng, 1e6, base)
    opposite = Update(
        {name: -delta for name, delta in large.delta.items()},
        WeightPieces({name: base[name] - delta for name, delta in large.delta.items()}),
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


def test_an_addend_of_another_shape_is_refused() -> None:
    with pytest.raises(TensorError, match=r"shape \[3\] was expected, got \[4\]"):
        RoundedSum((3,)).add_all([np.zeros(4, np.float32)], [1.0])
