"""Fit the arrays of a source to the specs of a task."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel import Task, TensorSpec
from umbel.errors import UmbelError
from umbel.examples import fit

Arrays = dict[str, NDArray[Any]]


def specs_of(task: Task | None) -> dict[str, TensorSpec]:
    """The specs of the task's inputs and targets by name; none without a task."""
    return {} if task is None else {**task.input_specs, **task.target_specs}


def pair_names(task: Task | None, what: str) -> tuple[str, str]:
    """The names of the task's one input and one target; raises UmbelError when it has more."""
    if task is None:
        return "x", "y"
    inputs, targets = list(task.input_specs), list(task.target_specs)
    if len(inputs) != 1 or len(targets) != 1:
        raise UmbelError(
            f"{what} has one input and one target, task {task.name} wants {', '.join(inputs)} and {', '.join(targets)}; "
            "give the examples as an .npz or .parquet file with these names"
        )
    return inputs[0], targets[0]


def pair(task: Task | None, what: str, x: NDArray[Any], y: NDArray[Any]) -> Arrays:
    """Inputs and targets under the task's names, fitted to it."""
    input_name, target_name = pair_names(task, what)
    return fitted({input_name: x, target_name: y}, task, what)


def target_names(task: Task | None) -> tuple[str, ...]:
    """The names of the task's targets."""
    return ("y",) if task is None else tuple(task.target_specs)


def fitted(arrays: Mapping[str, NDArray[Any]], task: Task | None, what: str) -> Arrays:
    """The arrays that the task names, in its shapes (where the number of elements agrees) and dtypes; all without a task.

    Raises UmbelError when one is missing or cannot be made to fit.
    """
    if scalars := sorted(name for name, array in arrays.items() if not array.ndim):
        raise UmbelError(f"{what}: array {scalars[0]!r} should have an axis of examples, it is a single number")
    specs = specs_of(task)
    if task is None:
        return dict(arrays)
    shaped = dict(arrays)
    for name in specs.keys() & arrays.keys():
        shaped[name] = _reshaped(arrays[name], specs[name], task, what, name)
    return fit(shaped, specs, what).tensors


def unit_pixels(images: NDArray[Any], spec: TensorSpec | None) -> NDArray[Any]:
    """8-bit pixels as float32 in [0, 1], unless the spec wants integers."""
    if images.dtype != np.uint8 or (spec is not None and not spec.dtype.startswith("float")):
        return images
    return images.astype(np.float32) / np.float32(255)


def _reshaped(array: NDArray[Any], spec: TensorSpec, task: Task, what: str, name: str) -> NDArray[Any]:
    if array.shape[1:] == spec.shape:
        return array
    if int(np.prod(array.shape[1:])) != int(np.prod(spec.shape)):
        raise UmbelError(
            f"{what}: an example's {name!r} has shape {list(array.shape[1:])}, task {task.name} wants {list(spec.shape)}; "
            "correct the task's specs or take other data"
        )
    return array.reshape(len(array), *spec.shape)
