from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from umbel import Task, TensorSpec
from umbel.errors import UmbelError
from umbel_sim.data import load


def task(shape: tuple[int, ...], dtype: str = "float32") -> Task:
    return Task("trial", lambda: None, "mse", TensorSpec(shape, dtype), TensorSpec((), "int32"))


def draw(path: Path, value: int, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (name, value) in enumerate([("dog", 255), ("cat", 0), ("cat", 51)]):
        draw(tmp_path / "pets" / name / f"{number}.png", value)
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path / "pets"


@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 6, 1), (4, 6), (2, 2, 3)])
def test_a_sub_folder_is_a_class(shape: tuple[int, ...], folder: Path) -> None:
    data = load(str(folder), task(shape))
    assert (data.train["x"].shape, data.train["x"].dtype) == ((3, *shape), np.float32)
    assert data.train["x"].reshape(3, -1)[:, 0].tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert (data.train["y"].tolist(), data.labels.tolist(), data.test) == ([0, 0, 1], [0, 0, 1], {})


def test_without_a_task_all_are_as_large_as_the_first(folder: Path) -> None:
    draw(folder / "dog" / "large.png", 255, (12, 12))
    assert load(str(folder)).train["x"].shape == (4, 4, 6, 3)


def test_a_task_of_integers_gets_the_pixels(folder: Path) -> None:
    assert load(str(folder), task((4, 6, 3), "uint8")).train["x"].max() == 255


def test_a_folder_named_test_is_held_out(tmp_path: Path) -> None:
    for part in ("train", "test"):
        draw(tmp_path / part / "a" / "1.png", 0)
    draw(tmp_path / "train" / "b" / "2.png", 0)
    data = load(str(tmp_path), task((4, 6, 3)))
    assert (data.count, data.test["x"].shape, data.test["y"].tolist()) == (2, (1, 4, 6, 3), [0])


def test_what_is_no_folder_of_images_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UmbelError, match="empty: expected images in one sub-folder a class, found none in 0 sub-folders"
    ):
        load(str(tmp_path / "empty"))
    with pytest.raises(UmbelError, match=r"pets: task trial should take images.*it takes \[8\]"):
        load(str(folder), task((8,)))
    (folder / "dog" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UmbelError, match=r"broken.jpg: expected an image, could not read it"):
        load(str(folder))
