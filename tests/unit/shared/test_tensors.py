import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from umbel import tensors
from umbel.errors import TensorError
from umbel.tensors import WeightSpec

SPECS = (WeightSpec("a", (2, 2)), WeightSpec("b", (3,)))
RIGHT = {"a": np.zeros((2, 2), np.float32), "b": np.ones(3, np.float32)}


@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.int32, np.uint8]), arrays.array_shapes(min_dims=0, max_dims=4, min_side=0)
    )
)
def test_tensors_come_back_bit_equal(value: np.ndarray) -> None:
    back = tensors.load(tensors.dump({"t": value}))["t"]
    assert (back.dtype, back.shape, back.tobytes()) == (value.dtype, value.shape, value.tobytes())


def test_a_transposed_view_is_written_as_it_reads() -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert np.array_equal(tensors.load(tensors.dump({"t": value}))["t"], value)


@given(st.binary(max_size=200))
def test_bytes_that_are_not_tensors_are_refused(data: bytes) -> None:
    assume(not _is_safetensors(data))
    with pytest.raises(TensorError):
        tensors.load(data)


def _is_safetensors(data: bytes) -> bool:
    header = int.from_bytes(data[:8], "little")
    return len(data) == 8 + header and data[8:].strip() == b"{}"


def test_what_fits_is_accepted() -> None:
    tensors.check(RIGHT, SPECS, "the update")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"a": RIGHT["a"]}, "'b' is missing"),
        ({**RIGHT, "c": RIGHT["b"]}, "'c' is not one of the plan's"),
        ({**RIGHT, "b": np.ones(4, np.float32)}, r"float32\[3\], got float32\[4\]"),
        ({**RIGHT, "b": np.ones(3, np.float64)}, r"got float64\[3\]"),
        ({**RIGHT, "b": np.array([1, np.nan, 1], np.float32)}, "NaN or infinity"),
        ({**RIGHT, "b": np.array([1, np.inf, 1], np.float32)}, "NaN or infinity"),
    ],
)
def test_missing_extra_misshapen_and_non_finite_tensors_are_refused(
    wrong: dict[str, np.ndarray], sentence: str
) -> None:
    with pytest.raises(TensorError, match=sentence):
        tensors.check(wrong, SPECS, "the update")


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named_by_tensor_and_row(broken: float) -> None:
    x = np.zeros((3, 2), np.float32)
    tensors.check_finite({"x": x, "ids": np.array([1]), "none": x[:0]}, "the inputs")
    x[2, 0] = broken
    with pytest.raises(TensorError, match=r"^the inputs: tensor 'x' holds NaN or infinity in row 2$"):
        tensors.check_finite({"ids": np.array([1]), "x": x}, "the inputs")
