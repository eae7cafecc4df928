import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import TensorError
from umbel.plan import Manifest
from umbel.tensors import Tensors, TensorSpec

MOST_PACKED, LEAST_PACKED = 200, 1 << 16
"""Bound on compression in an `.npz` file: an array may have at most MOST_PACKED times its packed bytes. Arrays that are
packed into fewer than LEAST_PACKED bytes count as that many, because small arrays of zeros compress far better."""


NOT_NPZ = (
    OSError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
    AttributeError,
    TypeError,
    EOFError,
    RuntimeError,
    KeyError,
    MemoryError,
    SyntaxError,
    RecursionError,
    tokenize.TokenError,
)
"""The exceptions that NumPy and zipfile raise for bytes that are not an `.npz` file."""


@dataclass(frozen=True)
class Examples:
    """Labelled examples: `tensors` by the names of the plan's inputs and targets, each with a first axis of `count` rows."""

    tensors: Tensors
    count: int


@dataclass(frozen=True)
class Batch:
    """One fixed-size batch; padding rows repeat row 0 and have `sample_weight` (float32[batch]) 0."""

    tensors: Tensors
    sample_weight: NDArray[np.float32]


def load_examples(source: Path | IO[bytes], manifest: Manifest, what: str = "") -> Examples:
    """The examples in an `.npz` file, cast to the plan's dtypes; raises TensorError when they do not fit the plan.

    The file holds one array for each input and target of the plan (`x` and `y` when there is one of each). Pickled objects
    are refused. Errors begin with `what`, or with the path.
    """
    return load_arrays(source, {**manifest.inputs, **manifest.targets}, what or str(source))


def load_arrays(source: Path | IO[bytes], specs: Mapping[str, TensorSpec], what: str) -> Examples:
    """The arrays named in `specs` from an `.npz` file, checked by `fit`; raises TensorError, beginning with `what`."""
    try:
        with np.load(source, allow_pickle=False) as archive:
            wanted = [name for name in specs if name in archive.files]
            for name in wanted:
                _check_size(archive.zip, name)
            tensors = {name: archive[name] for name in wanted}
    except NOT_NPZ as error:
        raise TensorError(f"{what}: expected examples in an .npz file, could not read one: {error}") from error
    return fit(tensors, specs, what)


def _check_size(archive: zipfile.ZipFile, name: str) -> None:
    """Raise ValueError unless an array has as many bytes as its header claims.

    NumPy allocates that memory before it reads the first byte, so a false header could exhaust the device's memory.
    """
    entry = archive.getinfo(f"{name}.npy")
    if entry.file_size > MOST_PACKED * max(entry.compress_size, LEAST_PACKED):
        raise ValueError(
            f"array {name!r} unpacks to {entry.file_size} bytes, over {MOST_PACKED} times its packed size; "
            "save it with numpy.savez"
        )
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        says = math.prod(shape) * dtype.itemsize
        if says != (has := entry.file_size - file.tell()):
            raise ValueError(f"array {name!r} should have {says} bytes by its header, got {has}")


def fit(tensors: Mapping[str, NDArray[Any]], specs: Mapping[str, TensorSpec], what: str) -> Examples:
    """Examples made of `tensors`, cast to the dtypes of `specs`.

    Raises TensorError, beginning with `what`, when a name, shape or kind of dtype differs, when a value is not finite, or
    when the arrays are empty or of different lengths.
    """
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
