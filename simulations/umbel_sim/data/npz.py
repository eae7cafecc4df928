"""Examples in an `.npz` file."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel import Task
from umbel.errors import UmbelError
from umbel_sim.data.dataset import Dataset
from umbel_sim.data.fitting import Arrays, fitted, target_names
from umbel_sim.data.labels import labels_of, owners_of

KEY, TEST, TRAIN = "key", "_test", "_train"


def npz(path: Path, task: Task | None = None) -> Dataset:
    """One array an input and target (`x`, `y`; `x_train` is understood too), held-out ones as `x_test`, `y_test`, and
    optionally `key`, each example's owner (numbers or strings). Values are taken as they are, as an agent takes its own.

    Raises UmbelError when the file is no such file or does not fit the task.
    """
    if not path.is_file():
        raise UmbelError(f"{path}: no such file; expected an .npz file of examples")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise UmbelError(f"{path}: expected examples in an .npz file, could not read one: {error}") from error
    key = arrays.pop(KEY, None)
    test = {name.removesuffix(TEST): array for name, array in arrays.items() if name.endswith(TEST)}
    train = {name.removesuffix(TRAIN): array for name, array in arrays.items() if not name.endswith(TEST)}
    return from_arrays(str(path), train, test, key, task)


def from_arrays(what: str, train: Arrays, test: Arrays, key: NDArray[Any] | None, task: Task | None) -> Dataset:
    """A data set of arrays by name; `key` names each training example's owner."""
    train = fitted(train, task, what)
    test = fitted(test, task, f"{what}, held out") if test else {}
    targets = target_names(task)
    target = targets[0]
    if target not in train:
        raise UmbelError(f"{what}: expected a target called {target!r}, found {', '.join(sorted(train)) or 'nothing'}")
    keys, names = (None, ()) if key is None else owners_of(key)
    return Dataset(what, train, test, labels_of(train[target], keys), keys, names, targets)
