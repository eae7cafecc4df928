from pathlib import Path

import numpy as np
import pytest

from umbel import Task, TensorSpec
from umbel.errors import UmbelError
from umbel_sim.data import load
from umbel_sim.data.keras_datasets import Parts, keras_dataset


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path))
    return tmp_path


def save(folder: Path, name: str = "mnist.npz") -> None:
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.integers(0, 256, (n, 28, 28), np.uint8) for part, n in (("train", 30), ("test", 10))}
    arrays["x_train"][0, 0, :2] = 0, 255
    arrays |= {f"y_{part}": rng.integers(0, 10, n, np.uint8) for part, n in (("train", 30), ("test", 10))}
    np.savez(folder / name, allow_pickle=False, **arrays)


def task(shape: tuple[int, ...], dtype: str = "float32") -> Task:
    return Task("trial", lambda: None, "mse", TensorSpec(shape, dtype), TensorSpec((), "int32"))


@pytest.mark.parametrize("shape", [(784,), (28, 28), (28, 28, 1)])
def test_images_are_scaled_and_shaped_for_the_task(shape: tuple[int, ...], folder: Path) -> None:
    save(folder)
    mnist = load("mnist", task(shape))
    assert (mnist.train["x"].shape, mnist.test["x"].shape) == ((30, *shape), (10, *shape))
    assert (mnist.train["x"].dtype, mnist.train["y"].dtype) == (np.float32, np.int32)
    assert mnist.train["x"].ravel()[:2].tolist() == [0.0, 1.0]
    assert np.array_equal(mnist.labels, mnist.train["y"])
    assert mnist.keys is None


def test_a_task_that_wants_integers_gets_the_pixels(folder: Path) -> None:
    save(folder)
    assert load("mnist", task((784,), "uint8")).train["x"][0, 1] == 255


def test_images_of_another_size_are_refused(folder: Path) -> None:
    save(folder)
    with pytest.raises(
        UmbelError, match=r"mnist: an example's 'x' has shape \[28, 28\], task trial wants \[32, 32, 3\]"
    ):
        load("mnist", task((32, 32, 3)))


def test_where_it_was_looked_for_and_what_to_do_is_said(folder: Path) -> None:
    def no_network(name: str) -> Parts:
        raise Exception(f"URL fetch failure on {name}")

    with pytest.raises(UmbelError) as caught:
        keras_dataset("mnist", None, no_network)
    sentence = str(caught.value)
    assert str(folder / "mnist.npz") in sentence
    assert "datasets, and Keras could not fetch it: URL fetch failure on mnist" in sentence
    assert "export UMBEL_DATA=FOLDER" in sentence
    assert "\n" not in sentence


def test_a_file_that_is_something_else_is_refused(folder: Path) -> None:
    np.savez(folder / "cifar10.npz", x=np.zeros(3))
    with pytest.raises(UmbelError, match=r"cifar10.npz: expected an .npz file with x_train, y_train, x_test, y_test"):
        load("cifar10")
    (folder / "mnist.npz").write_bytes(b"no archive")
    with pytest.raises(UmbelError, match="could not read it"):
        load("mnist")


def test_sequences_are_cut_and_filled_at_their_beginning(folder: Path) -> None:
    def reviews(_: str) -> Parts:
        rows = np.empty(2, object)
        rows[:] = [[1, 2, 3, 4, 5], [6]]
        return (rows, np.array([0, 1])), (rows[:1], np.array([1]))

    fitted = keras_dataset("imdb", task((3,), "int32"), reviews)
    assert fitted.train["x"].tolist() == [[3, 4, 5], [0, 0, 6]]
    assert keras_dataset("imdb", None, reviews).train["x"].shape == (2, 5)


def test_targets_of_one_number_may_have_an_axis(folder: Path) -> None:
    def cifar(_: str) -> Parts:
        images = np.zeros((4, 32, 32, 3), np.uint8)
        return (images, np.array([[3], [1], [2], [1]], np.uint8)), (images[:1], np.array([[0]], np.uint8))

    dataset = keras_dataset("cifar10", task((32, 32, 3)), cifar)
    assert (dataset.train["y"].tolist(), dataset.labels.tolist()) == ([3, 1, 2, 1], [3, 1, 2, 1])
