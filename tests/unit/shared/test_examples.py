from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.shared.test_plan import manifest
from umbel.errors import TensorError
from umbel.examples import Examples, batches, check_values, fit, load_examples
from umbel.tensors import TensorSpec


def save(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "examples.npz"
    np.savez(path, allow_pickle=False, **arrays)
    return path


X, Y = np.arange(3, dtype=np.float32).reshape(3, 1), np.ones((3, 1), np.float32)


def test_examples_are_cast_to_the_plans_dtypes(tmp_path: Path) -> None:
    examples = load_examples(save(tmp_path, x=X.astype(np.float64), y=Y), manifest())
    assert examples.count == 3
    assert examples.tensors["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": X}, "array 'y' is missing"),
        ({"x": X.reshape(1, 3), "y": Y}, r"\[examples, 1\], got \[1, 3\]"),
        ({"x": X, "y": Y[:2]}, "the same number of examples"),
        ({"x": X[:0], "y": Y[:0]}, "at least one example"),
        ({"x": np.array([["a"], ["b"], ["c"]]), "y": Y}, "should be float32"),
        ({"x": X * np.nan, "y": Y}, "NaN or infinity"),
    ],
)
def test_arrays_that_do_not_fit_the_plan_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str
) -> None:
    with pytest.raises(TensorError, match=sentence):
        load_examples(save(tmp_path, **arrays), manifest())


def test_a_file_that_is_not_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples.npz"
    for content in (b"", b"hello", b"PK\x03\x04 but not really"):
        path.write_bytes(content)
        with pytest.raises(TensorError, match="expected examples in an"):
            load_examples(path, manifest())
    np.savez(path, allow_pickle=True, x=np.array([object()]), y=Y)
    with pytest.raises(TensorError):
        load_examples(path, manifest())


@given(st.integers(1, 50), st.integers(1, 16))
def test_batches_hold_every_example_once_and_padding_weighs_nothing(count: int, size: int) -> None:
    rows = np.arange(count, dtype=np.float32)
    seen: list[float] = []
    for batch in batches(Examples({"x": rows}, count), size, np.random.default_rng(0).permutation(count)):
        assert len(batch.tensors["x"]) == len(batch.sample_weight) == size
        seen += batch.tensors["x"][batch.sample_weight == 1].tolist()
        assert set(batch.sample_weight.tolist()) <= {0.0, 1.0}
    assert sorted(seen) == rows.tolist()


@pytest.mark.parametrize(
    ("value", "dtype", "sentence"),
    [
        (np.array([[1.0], [1e39]]), "float32", r"holds 1e\+39 in row 1, float32 holds"),
        (np.array([[1.0], [-1e39]]), "float32", r"holds -1e\+39 in row 1"),
        (np.array([3, 2**32 + 3]), "int32", "holds 4294967299 in row 1, int32 holds -2147483648 to 2147483647"),
        (np.array([[2**31]]), "int32", "holds 2147483648 in row 0"),
        (np.array([0, 300]), "uint8", "holds 300 in row 1, uint8 holds 0 to 255"),
        (np.array([0, 0, -1]), "uint8", "holds -1 in row 2"),
        (np.array([[4_000_000_000]], "u4"), "int32", "holds 4000000000 in row 0"),
        (np.array([2**64 - 1], "u8"), "int64", "holds 18446744073709551615 in row 0"),
        (np.array([[[0, 0], [0, 0]], [[0, -5], [0, 0]]]), "uint16", "holds -5 in row 1"),
    ],
)
def test_values_that_the_dtype_cannot_hold_are_refused_with_value_row_and_array(
    value: np.ndarray, dtype: str, sentence: str
) -> None:
    with pytest.raises(TensorError, match=rf"^file: array 'x' {sentence}"):
        fit({"x": value}, {"x": TensorSpec(value.shape[1:], dtype)}, "file")


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array([3.4e38, -3.4e38]), "float32"),
        (np.array([-128, 127]), "int8"),
        (np.array([255], "u8"), "uint8"),
        (np.array([2**31 - 1]), "int32"),
        (np.array([True, False]), "int32"),
        (np.array([2**40]), "float32"),
    ],
)
def test_values_that_the_dtype_can_hold_keep_their_value(value: np.ndarray, dtype: str) -> None:
    fitted = fit({"x": value}, {"x": TensorSpec((), dtype)}, "file").tensors["x"]
    assert fitted.dtype == dtype
    np.testing.assert_allclose(fitted.astype(np.float64), value.astype(np.float64), rtol=1e-7)


def test_a_number_that_is_not_finite_is_named_by_its_row() -> None:
    with pytest.raises(TensorError, match="array 'x' holds NaN or infinity in row 1"):
        fit({"x": np.array([[0.0, 1.0], [0.0, np.nan]])}, {"x": TensorSpec((2,))}, "file")


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_outside_the_classes_is_named_with_its_row(label: int, tmp_path: Path) -> None:
    plan = msgspec.structs.replace(manifest(), targets={"y": TensorSpec((), "int32")}, value_counts={"y": 10})
    y = np.array([0, 9, label], np.int32)
    with pytest.raises(
        TensorError, match=f"array 'y' has the label or id {label} in row 2, the plan knows 0 to 9; correct"
    ):
        load_examples(save(tmp_path, x=X, y=y), plan)
    load_examples(save(tmp_path, x=X, y=np.minimum(np.maximum(y, 0), 9)), plan)


def test_an_id_beyond_the_embedding_is_named_with_its_row() -> None:
    check_values({"x": np.array([[0, 1], [2, 3]])}, {"x": 4}, "file")
    with pytest.raises(TensorError, match="file: array 'x' has the label or id 3 in row 1, the plan knows 0 to 2"):
        check_values({"x": np.array([[0, 1], [2, 3]])}, {"x": 3}, "file")
