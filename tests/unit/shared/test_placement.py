import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from umbel.errors import TensorError
from umbel.placement import place, quantise
from umbel.plan import Placement

values = st.floats(-100, 100, width=32)


def test_a_weight_is_laid_where_its_placement_says() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    model = place(b"\xff" * 40, {"w": weight}, [Placement("w", 8, 24, (1, 0))])
    assert model[:8] == model[32:] == b"\xff" * 8
    assert np.frombuffer(model[8:32], np.float32).tolist() == weight.T.reshape(-1).tolist()


@given(
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=1, max_dims=4, max_side=4), elements=values),
    st.data(),
)
def test_a_placed_weight_reads_back_and_nothing_else_changes(weight: np.ndarray, data: st.DataObject) -> None:
    permutation = tuple(data.draw(st.permutations(range(weight.ndim))))
    axis = data.draw(st.sampled_from([None, -1, *range(weight.ndim)]))
    shape = tuple(weight.shape[i] for i in permutation)
    count = 1 if axis is None or axis < 0 else shape[axis]
    size, scales = weight.size * (4 if axis is None else 1), 4 * count
    start, first, second = 8, 8 + size + 3, 8 + size + 3 + scales + 5
    file = bytes(range(1, 251)) * ((second + scales) // 250 + 1)
    where = () if permutation == tuple(range(weight.ndim)) else permutation
    int8 = () if axis is None else (first, axis, (second,))
    placement = Placement("w", start, size, where, *int8)
    placed = place(file, {"w": weight}, [placement])
    touched = [range(start, start + size)]
    if axis is None:
        laid = np.frombuffer(placed[start : start + size], np.float32).reshape(shape)
        assert np.array_equal(laid.transpose(np.argsort(permutation)), weight)
    else:
        touched += [range(first, first + scales), range(second, second + scales)]
        assert placed[first : first + scales] == placed[second : second + scales]
        steps = np.frombuffer(placed[first : first + scales], np.float32)
        along = [count if i == axis else 1 for i in range(weight.ndim)]
        laid = np.frombuffer(placed[start : start + size], np.int8).reshape(shape) * steps.reshape(along)
        assert np.all(np.abs(laid - weight.transpose(permutation)) <= steps.reshape(along) * 0.5001)
    inside = {i for part in touched for i in part}
    assert all(a == b for i, (a, b) in enumerate(zip(file, placed, strict=True)) if i not in inside)


@given(
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=3, max_side=5), elements=values),
    st.integers(-1, 1),
)
def test_quantised_values_are_within_half_a_step(weight: np.ndarray, axis: int) -> None:
    quantised, scales = quantise(weight, axis)
    shape = [1] * weight.ndim
    if axis >= 0:
        shape[axis] = -1
    steps = scales.reshape(shape)
    assert quantised.dtype == np.int8
    assert np.abs(quantised).max(initial=0) <= 127
    assert np.all(np.abs(quantised * steps - weight) <= steps * 0.5001)


SMALLEST = 2.0**-149
"""The smallest float32 above 0: all subnormal ones are multiples of it."""


def test_a_scale_that_is_subnormal_was_rounded_far_from_the_exact_one() -> None:
    """The weights that the test above found by chance: 190 / 127 smallest numbers is 1, and 190 is not 127 times 1."""
    weight = (np.array([[190, -100, 63]]) * SMALLEST).astype(np.float32)
    quantised, scales = quantise(weight, -1)
    assert scales.tolist() == [2 * SMALLEST]
    assert quantised.tolist() == [[95, -50, 32]]
    quantised, scales = quantise((np.array([[63, 1, 0], [0, 0, 0]]) * SMALLEST).astype(np.float32), 0)
    assert scales.tolist() == [SMALLEST, 1.0]
    assert quantised.tolist() == [[63, 1, 0], [0, 0, 0]]


@given(
    arrays.arrays(
        np.int64, arrays.array_shapes(min_dims=2, max_dims=3, max_side=5), elements=st.integers(-(2**31), 2**31)
    ),
    st.integers(0, 31),
    st.integers(-1, 1),
)
def test_tiny_weights_are_quantised_within_half_a_step(multiples: np.ndarray, bits: int, axis: int) -> None:
    """Weights whose scales are subnormal, or just not."""
    weight = ((multiples >> bits) * SMALLEST).astype(np.float32)
    quantised, scales = quantise(weight, axis)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    steps = scales.reshape(shape).astype(np.float64)
    assert np.all(np.abs(quantised * steps - weight) <= steps * 0.5001)


@given(arrays.arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32)))
def test_weights_of_ordinary_size_are_quantised_as_the_converter_does(weight: np.ndarray) -> None:
    peak = float(np.abs(weight).max())
    assume(peak > 1e-30)
    quantised, scales = quantise(weight, -1)
    assert scales.tolist() == [np.float32(peak) / np.float32(127)]
    assert quantised.tolist() == np.round(weight / (peak / 127)).tolist()


@pytest.mark.parametrize("placement", [Placement("w", 0, 8), Placement("w", 99, 16), Placement("w", -4, 16)])
def test_a_weight_that_does_not_fit_its_place_is_refused(placement: Placement) -> None:
    with pytest.raises(TensorError, match="belong to another plan"):
        place(b"\0" * 100, {"w": np.ones(4, np.float32)}, [placement])
