"""Examples of a device that do not fit the plan are told apart from those that do, by the device's number."""

from typing import Any

import numpy as np
import pytest

from umbel.errors import TensorError
from umbel.tensors import TensorSpec
from umbel_sim.data import FunctionFleet
from umbel_sim.fleet_data import examples_of

SPECS = {"x": TensorSpec((2, 3)), "y": TensorSpec((), "int32")}
GOOD = {"x": np.zeros((4, 2, 3)), "y": np.arange(4)}


def test_examples_come_in_the_dtypes_of_the_plan() -> None:
    found = examples_of(FunctionFleet(lambda device: GOOD, 1), 0, SPECS)
    assert {name: tensor.dtype.name for name, tensor in found.tensors.items()} == {"x": "float32", "y": "int32"}
    assert found.count == 4


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"x": np.zeros((4, 2, 2))}, r"device 1: array 'x' should have shape \[examples, 2, 3\], got \[4, 2, 2\]"),
        ({"x": np.zeros((4, 6))}, "should have shape"),
        ({"y": np.zeros((4, 1), np.int32)}, "array 'y' should have shape"),
        ({"y": np.arange(3)}, "the same number of examples"),
        ({"x": np.zeros((0, 2, 3)), "y": np.zeros(0)}, "at least 1"),
        ({"x": np.full((4, 2, 3), "a")}, "array 'x' should be float32"),
        ({"x": None}, "array 'x' is missing"),
    ],
)
def test_what_does_not_fit_is_said_of_its_device(changed: dict[str, Any], sentence: str) -> None:
    made = {name: value for name, value in {**GOOD, **changed}.items() if value is not None}
    fleet = FunctionFleet(lambda device: made if device == 1 else GOOD, 2)
    with pytest.raises(TensorError, match=sentence):
        examples_of(fleet, 1, SPECS)
