"""The data sets of `keras.datasets`, from a file of ours, Keras's cache or Keras's download."""

import contextlib
import importlib
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel import Task
from umbel.errors import UmbelError
from umbel.keras_import import import_keras
from umbel_sim.data.dataset import Dataset
from umbel_sim.data.fitting import pair, specs_of, target_names, unit_pixels
from umbel_sim.data.folders import VARIABLE, keras_cache, own_file, own_place
from umbel_sim.data.labels import labels_of

NAMES = ("boston_housing", "california_housing", "cifar10", "cifar100", "fashion_mnist", "imdb", "mnist", "reuters")
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
Parts = tuple[tuple[NDArray[Any], NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]


def from_keras(name: str) -> Parts:
    """Whatever Keras has or downloads as `name`: ((x, y) to train, (x, y) to test)."""
    import_keras()
    # The progress of a download is no part of a command's output.
    with contextlib.redirect_stdout(sys.stderr):
        loaded: Parts = importlib.import_module(f"keras.datasets.{name}").load_data()
    return loaded


def keras_dataset(name: str, task: Task | None = None, fetch: Callable[[str], Parts] = from_keras) -> Dataset:
    """The data set `name`: `NAME.npz` in the folder of UMBEL_DATA when it is there, else what `fetch` gives.

    8-bit images become float32 in [0, 1]; sequences of different lengths (imdb, reuters) end at the spec's last place, and
    are cut or filled with 0 at their beginning, as Keras's pad_sequences does. Raises UmbelError when it cannot be had.
    """
    path = own_file(f"{name}.npz")
    (x, y), (test_x, test_y) = _read(path) if path else _fetched(name, fetch)
    specs = list(specs_of(task).values())
    spec = specs[0] if specs else None
    length = spec.shape[0] if spec and len(spec.shape) == 1 else None
    if x.dtype == object:
        length = length or max(len(row) for row in (*x, *test_x))
        x, test_x = _padded(x, length), _padded(test_x, length)
    elif x.ndim >= 3:
        x, test_x = unit_pixels(x, spec), unit_pixels(test_x, spec)
    train, test = pair(task, name, x, y), pair(task, name, test_x, test_y)
    return Dataset(name, train, test, labels_of(y), targets=target_names(task))


def _read(path: Path) -> Parts:
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y, test_x, test_y = (file[array] for array in ARRAYS)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UmbelError(
            f"{path}: expected an .npz file with {', '.join(ARRAYS)}, could not read it: {error}"
        ) from error
    return (x, y), (test_x, test_y)


def _fetched(name: str, fetch: Callable[[str], Parts]) -> Parts:
    try:
        return fetch(name)
    except UmbelError:
        raise
    except Exception as error:  # Keras raises bare Exceptions when a download fails
        raise UmbelError(
            f"{name} is neither in {own_place(name + '.npz')} nor in {keras_cache()}, and Keras could not fetch it: {error}; "
            f"put {name}.npz with {', '.join(ARRAYS)} into a folder and name it: export {VARIABLE}=FOLDER"
        ) from error


def _padded(rows: NDArray[Any], length: int) -> NDArray[np.int32]:
    padded = np.zeros((len(rows), length), np.int32)
    for row, filled in zip(rows, padded, strict=True):
        last = row[-length:]
        filled[length - len(last) :] = last
    return padded
