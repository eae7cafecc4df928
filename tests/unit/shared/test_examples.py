from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.shared.test_plan import manifest
from umbel.errors import TensorError
from umbel.examples import Examples, batches, load_examples


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
