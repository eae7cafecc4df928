import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import TensorError
from umbel.plan import Manifest
from umbel.tensors import Tensors, TensorSpec


@dataclass(frozen=True)
class Examples:
    """Labelled examples: `tensors` by the names of the plan's inputs and targets, each with a leading axis of `count`."""

    tensors: Tensors
    count: int


@dataclass(frozen=True)
class Batch:
    """One fixed-size batch; padding rows repeat row 0 and have `sample_weight` (float32[batch]) 0."""

    tensors: Tensors
    sample_weight: NDArray[np.float32]


def load_examples(source: Path | IO[bytes], manifest: Manifest, what: str = "") -> Examples:
    """The examples in an `.npz` file, cast to the plan's dtypes; raises TensorError when they do not fit the plan.

    The file holds one array an input and target of the plan (`x` and `y` when there is one of each), never pickles.
    Errors begin with `what`, or the path.
    """
    return load_arrays(source, {**manifest.inputs, **manifest.targets}, what or str(source))


def load_arrays(source: Path | IO[bytes], specs: Mapping[str, TensorSpec], what: str) -> Examples:
    """The arrays of `specs` in an `.npz` file, as `fit` takes them; raises TensorError, whose sentence begins with `what`."""
    try:
        with np.load(source, allow_pickle=False) as archive:
            tensors = {name: archive[name] for name in specs if name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError, TypeError, EOFError) as error:
        raise TensorError(f"{what}: expected examples in an .npz file, could not read one: {error}") from error
    return fit(tensors, specs, what)


def fit(tensors: Mapping[str, NDArray[Any]], specs: Mapping[str, TensorSpec], what: str) -> Examples:
    """Examples of `specs` from `tensors`, cast to their dtypes; raises TensorError when names, shapes or kinds differ."""
    fitted: Tensors = {}
    for name, spec in specs.items():
        if name not in tensors:
            raise TensorError(f"{what}: array {name!r} is missing; the plan wants {', '.join(sorted(specs))}")
        tensor = tensors[name]
        if tensor.shape[1:] != spec.shape or tensor.ndim == 0:
            raise TensorError(
                f"{what}: array {name!r} should have shape [examples, {', '.join(map(str, spec.shape))}], got {list(tensor.shape)}"
            )
        if not np.can_cast(tensor.dtype, spec.dtype, "same_kind") and not (
            tensor.dtype.kind in "iu" and spec.dtype.startswith(("int", "uint"))
        ):
            raise TensorError(f"{what}: array {name!r} should be {spec.dtype}, got {tensor.dtype.name}")
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise TensorError(f"{what}: array {name!r} holds NaN or infinity")
        fitted[name] = np.ascontiguousarray(tensor, dtype=spec.dtype)
    counts = {name: len(tensor) for name, tensor in fitted.items()}
    if len(set(counts.values())) != 1:
        raise TensorError(f"{what}: every array should have the same number of examples, got {counts}")
    count = next(iter(counts.values()))
    if count == 0:
        raise TensorError(f"{what}: expected at least one example, got none")
    return Examples(fitted, count)


def batches(examples: Examples, size: int, order: NDArray[np.intp] | None = None) -> Iterator[Batch]:
    """The examples in batches of exactly `size` rows, in `order` (default: as stored); the last one is padded."""
    indices = np.arange(examples.count) if order is None else order
    for start in range(0, len(indices), size):
        rows = indices[start : start + size]
        weight = np.zeros(size, np.float32)
        weight[: len(rows)] = 1.0
        padded = np.concatenate([rows, np.zeros(size - len(rows), rows.dtype)])
        yield Batch({name: tensor[padded] for name, tensor in examples.tensors.items()}, weight)
