"""A `tf.data.Dataset` as examples; for the Python API."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from umbel import Task
from umbel.errors import UmbelError
from umbel_sim.data.dataset import Dataset
from umbel_sim.data.fitting import Arrays, pair_names, specs_of
from umbel_sim.data.npz import KEY, from_arrays


def tf_data(train: Any, test: Any = None, task: Task | None = None, name: str = "tf.data") -> Dataset:
    """All elements of `train` and `test`, two finite `tf.data.Dataset`s of (x, y), of mappings by the names of inputs and
    targets (and `key`, each example's owner), or of pairs of such mappings. Elements are single examples, or batches where
    the task's specs say so.

    Raises UmbelError when they are infinite, empty or do not fit the task.
    """
    arrays = _arrays(train, task, name)
    key = arrays.pop(KEY, None)
    held_out = {} if test is None else _arrays(test, task, f"{name}, held out")
    held_out.pop(KEY, None)
    return from_arrays(name, arrays, held_out, key, task)


def _arrays(dataset: Any, task: Task | None, what: str) -> Arrays:
    if int(dataset.cardinality()) == -1:
        raise UmbelError(f"{what}: expected a finite tf.data.Dataset, this one repeats for ever; use take()")
    rows = [_named(element, task, what) for element in dataset.as_numpy_iterator()]
    if not rows:
        raise UmbelError(f"{what}: expected at least one element, the tf.data.Dataset is empty")
    join = np.concatenate if _batched(rows[0], task) else np.stack
    try:
        return {name: join([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    except (KeyError, ValueError) as error:
        raise UmbelError(f"{what}: every element should have the names and shapes of the first one: {error}") from error


def _named(element: Any, task: Task | None, what: str) -> Mapping[str, Any]:
    if isinstance(element, Mapping):
        return element
    if isinstance(element, tuple) and len(element) == 2:
        names = ("", "") if all(isinstance(part, Mapping) for part in element) else pair_names(task, what)
        named: dict[str, Any] = {}
        for name, part in zip(names, element, strict=True):
            named |= part if isinstance(part, Mapping) else {name: part}
        return named
    raise UmbelError(
        f"{what}: an element should be (x, y) or a mapping of arrays by name, got a {type(element).__name__}"
    )


def _batched(row: Mapping[str, Any], task: Task | None) -> bool:
    """Whether every tensor has one axis more than its spec; single examples without a task."""
    specs = specs_of(task)
    return bool(specs) and all(np.ndim(row[name]) == len(specs[name].shape) + 1 for name in specs.keys() & row.keys())
