from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from umbel import Task, TensorSpec
from umbel.errors import UmbelError
from umbel_sim.data import load

TASK = Task("trial", lambda: None, "mse", TensorSpec((2, 2)), TensorSpec((), "int32"))


def save(folder: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), folder / "own.parquet", row_group_size=2)
    return str(folder / "own.parquet")


def test_lists_are_axes_and_keys_are_owners(tmp_path: Path) -> None:
    x = np.arange(12.0).reshape(3, 2, 2)
    data = load(save(tmp_path, x=x.tolist(), y=[1, 0, 1], key=["bob", "ann", "bob"], note=["a", None, "c"]), TASK)
    assert np.array_equal(data.train["x"], x.astype(np.float32))
    assert (data.train["y"].tolist(), data.train["y"].dtype) == ([1, 0, 1], np.int32)
    assert (data.key_names, data.test) == (("ann", "bob"), {})
    assert data.keys is not None
    assert data.keys.tolist() == [1, 0, 1]


def test_flat_and_fixed_size_lists_are_shaped_for_the_task(tmp_path: Path) -> None:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12, dtype=np.float32)), 4)
    data = load(save(tmp_path, x=flat, y=[0, 1, 2]), TASK)
    assert np.array_equal(data.train["x"], np.arange(12, dtype=np.float32).reshape(3, 2, 2))


def test_without_a_task_all_columns_are_arrays(tmp_path: Path) -> None:
    data = load(save(tmp_path, x=[1.5, 2.5], y=[True, False], key=[7, 3]))
    assert (data.train["x"].tolist(), data.labels.tolist(), data.key_names) == ([1.5, 2.5], [1, 0], ("3", "7"))


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"x": [[1.0], [1.0, 2.0]], "y": [0, 1]}, "the lists of column 'x' should have one length, got 1 to 2"),
        ({"x": [1.0, None], "y": [0, 1]}, "column 'x' has 1 empty values"),
        ({"x": [[1.0], None], "y": [0, 1]}, "column 'x' has 1 empty values"),
        ({"x": [1.0, 2.0]}, "expected a target called 'y', found x"),
    ],
)
def test_columns_that_are_no_examples_are_refused(columns: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UmbelError, match=f"own.parquet: {sentence}"):
        load(save(tmp_path, **columns))


def test_columns_that_do_not_fit_the_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UmbelError, match=r"an example's 'x' has shape \[1\], task trial wants \[2, 2\]"):
        load(save(tmp_path, x=[[1.0], [2.0]], y=[0, 1]), TASK)
    with pytest.raises(UmbelError, match="array 'y' is missing"):
        load(save(tmp_path, x=[[1.0] * 4]), TASK)
    with pytest.raises(UmbelError, match="array 'y' should be int32"):
        load(save(tmp_path, x=[[1.0] * 4], y=["cat"]), TASK)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(UmbelError, match=r"text.parquet: expected a Parquet file, could not read one"):
        load(str(tmp_path / "text.parquet"))
