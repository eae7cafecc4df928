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


def test_grey_of_16_bits_has_the_brightness_of_8_bits(tmp_path: Path) -> None:
    ramp = np.arange(64).reshape(8, 8) * 4
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "cat" / "8bit.png")
    Image.fromarray((ramp * 257).astype(np.uint16)).save(tmp_path / "dog" / "16bit.png")
    eight, sixteen = load(str(tmp_path), task((8, 8))).train["x"]
    np.testing.assert_array_equal(eight, sixteen)
    np.testing.assert_allclose(eight, ramp / 255, rtol=1e-6)
    assert load(str(tmp_path)).train["x"].shape == (2, 8, 8, 1)


def test_pixels_of_32_bits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "cat" / "deep.tif")
    with pytest.raises(UmbelError, match=r"deep\.tif: expected 8 or 16 bits a channel, got pixels of mode F; convert"):
        load(str(tmp_path), task((4, 4)))


def test_a_photo_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    image = Image.fromarray(np.array([[0, 0], [255, 255]], np.uint8))
    exif = image.getexif()
    exif[0x0112] = 3  # turned by 180 degrees
    image.save(tmp_path / "cat" / "photo.png", exif=exif)
    assert load(str(tmp_path), task((2, 2))).train["x"][0].tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_hidden_folders_and_files_are_no_classes_and_no_images(folder: Path) -> None:
    draw(folder / ".ipynb_checkpoints" / "1.png", 9)
    (folder / "cat" / "._1.png").write_bytes(b"not an image")
    assert load(str(folder), task((4, 6))).train["y"].tolist() == [0, 0, 1]


def test_a_held_out_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    for name in ("train/a", "test/a", "test/b"):
        draw(tmp_path / name / "1.png", 0)
    with pytest.raises(UmbelError, match=r"test: class 'b' is not in .*train; give both folders the same classes"):
        load(str(tmp_path), task((4, 6, 3)))
