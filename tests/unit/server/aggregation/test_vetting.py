"""What may be folded, and the sentence for what may not."""

import math

import numpy as np
import pytest

from umbel.tensors import Tensors, WeightSpec
from umbel.updates import Pipeline, RefusedUpdate
from umbel_server.aggregation.vetting import ENOUGH, Vetting

PIPELINE = Pipeline([WeightSpec("w", (2, 2)), WeightSpec("b", (3,)), WeightSpec("s", ())])


def update(scale: float = 1.0) -> Tensors:
    return {
        "b": np.full(3, scale, np.float32),
        "s": np.asarray(scale, np.float32),
        "w": np.full((2, 2), scale, np.float32),
    }


def test_the_norm_is_over_all_tensors() -> None:
    assert Vetting(PIPELINE).accept("device-1", update(2.0), 5) == pytest.approx(2.0 * math.sqrt(8))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"w": None}, r"tensor 'w' is missing \(1 of 3 missing\)"),
        ({"x": np.zeros(1)}, "tensor 'x' is not one of the plan's 3 weights"),
        ({"w": np.zeros((4,), np.float32)}, r"tensor 'w' should be float32\[2, 2\], got float32\[4\]"),
        ({"b": np.zeros(3)}, r"tensor 'b' should be float32\[3\], got float64\[3\]"),
        ({"b": np.array([0, math.nan, 0], np.float32)}, "tensor 'b' holds NaN"),
        ({"w": np.array([[0, 0], [-math.inf, 0]], np.float32)}, "tensor 'w' holds NaN"),
    ],
)
def test_what_does_not_fit_the_plan_is_refused(change: Tensors, sentence: str) -> None:
    changed = {name: tensor for name, tensor in (update() | change).items() if tensor is not None}
    with pytest.raises(RefusedUpdate, match=f"the update of device-1: {sentence}"):
        Vetting(PIPELINE).accept("device-1", changed, 5)


@pytest.mark.parametrize(
    ("examples", "reported", "expected"),
    [
        (0, 0, "at least 1"),
        (math.nan, 0, "at least 1"),
        (math.inf, 0, "at least 1"),
        (11, 10, "1 to 10"),
        (-1, 9, "1 to 9"),
    ],
)
def test_examples_must_be_those_a_device_can_have(examples: float, reported: int, expected: str) -> None:
    with pytest.raises(RefusedUpdate, match=rf"{expected} examples? w.* expected, it claims"):
        Vetting(PIPELINE).accept("device-1", update(), examples, reported)
    assert Vetting(PIPELINE).accept("device-1", update(), 10, 10) > 0


@pytest.mark.parametrize("scale", [3e38, 1e25, 1e-30, 1e-44, 0.0])
def test_norms_that_float32_cannot_square_are_right(scale: float) -> None:
    tensors = update(scale)
    expected = math.sqrt(sum(float(np.sum(np.square(tensor.astype(np.float64)))) for tensor in tensors.values()))
    assert Vetting(PIPELINE).accept("device-1", tensors, 1) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("value", [1e154, 1.2e154, 1e200])
def test_numbers_whose_squares_add_up_to_infinity_are_refused(value: float) -> None:
    specs = [WeightSpec(name, (1,), "float64") for name in "ab"]
    with pytest.raises(RefusedUpdate, match=r"tensor '[ab]' holds numbers too large to square"):
        Vetting(Pipeline(specs)).accept("device-1", {"a": np.array([value]), "b": np.array([1.3e154])}, 1)


def test_a_fixed_bound_of_the_norm() -> None:
    vetting = Vetting(PIPELINE, max_norm=3.0)
    vetting.accept("device-1", update(1.0), 1)
    with pytest.raises(RefusedUpdate, match=r"device-2: a norm of at most 3 was expected, it is 3.11"):
        vetting.accept("device-2", update(1.1), 1)


def test_a_bound_of_medians_begins_with_enough_updates_and_ends_with_the_round() -> None:
    vetting = Vetting(PIPELINE, norm_multiple=3.0)
    for k in range(ENOUGH):
        vetting.accept(f"device-{k}", update(1.0 if k else 100.0), 1)
    with pytest.raises(RefusedUpdate, match=r"device-9: a norm of at most 3 times the round's median of 2.82843"):
        vetting.accept("device-9", update(3.1), 1)
    vetting.accept("device-8", update(2.9), 1)
    vetting.clear()
    vetting.accept("device-9", update(3.1), 1)
