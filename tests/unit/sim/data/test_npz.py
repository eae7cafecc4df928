from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umbel import Task, TensorSpec
from umbel.errors import UmbelError
from umbel_sim.data import load

TWO = Task(
    "two",
    lambda: None,
    "mse",
    {"image": TensorSpec((2, 2)), "age": TensorSpec(())},
    {"kind": TensorSpec((), "int32"), "size": TensorSpec(())},
)


def save(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "own.npz", allow_pickle=True, **arrays)
    return str(folder / "own.npz")


def test_inputs_targets_owners_and_held_out_examples(tmp_path: Path) -> None:
    x, y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 1, 0, 2, 2])
    key = np.array(["ann", "bob", "ann", "eve", "bob", "ann"])
    data = load(save(tmp_path, x=x, y=y, key=key, x_test=x[:2], y_test=y[:2]))
    assert (list(data.train), list(data.test)) == (["x", "y"], ["x", "y"])
    assert (data.labels.tolist(), data.key_names) == (y.tolist(), ("ann", "bob", "eve"))
    assert data.keys is not None
    assert (data.keys.tolist(), data.owners) == ([0, 1, 0, 2, 1, 0], 3)


def test_keras_names_of_arrays_are_understood(tmp_path: Path) -> None:
    data = load(save(tmp_path, x_train=np.ones((3, 1)), y_train=np.ones(3), x_test=np.ones((1, 1)), y_test=np.ones(1)))
    assert (data.count, len(data.test["x"])) == (3, 1)


def test_several_inputs_and_targets_by_their_names(tmp_path: Path) -> None:
    path = save(
        tmp_path, image=np.zeros((3, 4)), age=np.zeros(3), kind=np.array([2, 0, 1]), size=np.ones(3), note=np.ones(5)
    )
    data = load(path, TWO)
    assert {name: (array.shape, array.dtype.name) for name, array in data.train.items()} == {
        "image": ((3, 2, 2), "float32"),
        "age": ((3,), "float32"),
        "kind": ((3,), "int32"),
        "size": ((3,), "float32"),
    }
    assert (data.labels.tolist(), data.targets) == ([2, 0, 1], ("kind", "size"))


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.zeros((3, 2))}, "expected a target called 'y', found x"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(2)}, "every array should have the same number of examples"),
        ({"x": np.zeros(2), "y": np.zeros(2), "key": np.zeros(3)}, "every array should have the same number"),
        ({"x": np.zeros(2), "y": np.float32(2)}, "array 'y' should have an axis of examples"),
        ({"x": np.array([[1], "no numbers"], object), "y": np.zeros(2)}, "could not read one"),
    ],
)
def test_arrays_that_are_no_examples_are_refused(arrays: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UmbelError, match=rf"own.npz: {sentence}|own.npz: .*{sentence}"):
        load(save(tmp_path, **arrays))


def test_arrays_that_do_not_fit_the_task_are_refused(tmp_path: Path) -> None:
    arrays = {"image": np.zeros((3, 5)), "age": np.zeros(3), "kind": np.zeros(3, int), "size": np.zeros(3)}
    with pytest.raises(UmbelError, match=r"own.npz: an example's 'image' has shape \[5\], task two wants \[2, 2\]"):
        load(save(tmp_path, **arrays), TWO)
    arrays["image"] = np.zeros((3, 4))
    with pytest.raises(UmbelError, match=r"own.npz: array 'age' is missing"):
        load(save(tmp_path, **{name: array for name, array in arrays.items() if name != "age"}), TWO)
    with pytest.raises(UmbelError, match=r"own.npz: array 'kind' should be int32, got float64"):
        load(save(tmp_path, **{**arrays, "kind": np.zeros(3)}), TWO)
    with pytest.raises(UmbelError, match=r"own.npz, held out: array 'image' is missing"):
        load(save(tmp_path, **arrays, age_test=np.zeros(2)), TWO)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(UmbelError, match=r"text.npz: expected examples in an .npz file, could not read one"):
        load(str(tmp_path / "text.npz"))
