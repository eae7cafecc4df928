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
    what = what or str(source)
    examples = load_arrays(source, {**manifest.inputs, **manifest.targets}, what)
    check_values(examples.tensors, manifest.value_counts, what)
    return examples


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

    Raises TensorError, beginning with `what`, when a name, shape or kind of dtype differs, when a value is not finite or its
    dtype cannot hold it, or when the arrays are empty or of different lengths.
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
        if tensor.dtype.kind == "f" and not (finite := np.isfinite(tensor)).all():
            raise TensorError(f"{what}: array {name!r} holds NaN or infinity in {_row(finite.argmin(), tensor)}")
        fitted[name] = cast(tensor, spec.dtype, f"{what}: array {name!r}")
    counts = {name: len(tensor) for name, tensor in fitted.items()}
    if len(set(counts.values())) != 1:
        raise TensorError(f"{what}: every array should have the same number of examples, got {counts}")
    count = next(iter(counts.values()))
    if count == 0:
        raise TensorError(f"{what}: expected at least one example, got none")
    return Examples(fitted, count)


def cast(tensor: NDArray[Any], dtype: str, what: str) -> NDArray[Any]:
    """The tensor as `dtype`, in C order.

    Raises TensorError, beginning with `what` and naming value and row, when `dtype` cannot hold a value: integers would
    wrap, and large floats would become infinite.
    """
    wanted = np.dtype(dtype)
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(tensor, dtype=wanted)
    if wanted == tensor.dtype or not tensor.size:
        return result
    place: Any = None
    least: float | int
    most: float | int
    if wanted.kind in "iu" and tensor.dtype.kind in "iu":
        least, most = int(np.iinfo(wanted).min), int(np.iinfo(wanted).max)
        # Python's integers compare rightly where NumPy's would be converted first.
        place = tensor.argmin() if int(tensor.min()) < least else tensor.argmax() if int(tensor.max()) > most else None
    elif wanted.kind == "f":
        least, most = float(np.finfo(wanted).min), float(np.finfo(wanted).max)
        lost = np.isinf(result) & ~np.isinf(tensor)
        place = lost.argmax() if lost.any() else None
    if place is not None:
        value = tensor.reshape(-1)[place].item()
        raise TensorError(
            f"{what} holds {value} in {_row(place, tensor)}, {wanted.name} holds {least:.15g} to {most:.15g}"
        )
    return result


def check_values(tensors: Mapping[str, NDArray[Any]], counts: Mapping[str, int], what: str) -> None:
    """Raise TensorError, beginning with `what`, on a label outside the classes or an id beyond the embedding.

    `counts` is the plan's `value_counts`: with n, 0 to n - 1 are known.
    """
    for name, count in counts.items():
        tensor = tensors[name]
        outside = (tensor < 0) | (tensor >= count)
        if outside.any():
            place = outside.argmax()
            raise TensorError(
                f"{what}: array {name!r} has the label or id {tensor.reshape(-1)[place].item()} in {_row(place, tensor)}, "
                f"the plan knows 0 to {count - 1}; correct the examples"
            )


def _row(place: Any, tensor: NDArray[Any]) -> str:
    """The row of the element at `place` of the flattened tensor, in words."""
    return f"row {int(place) // max(1, tensor[:1].size)}" if tensor.ndim else "its only value"


def batches(examples: Examples, size: int, order: NDArray[np.intp] | None = None) -> Iterator[Batch]:
    """The examples in batches of exactly `size` rows, in `order` (default: as stored); the last one is padded."""
    indices = np.arange(examples.count) if order is None else order
    for start in range(0, len(indices), size):
        rows = indices[start : start + size]
        weight = np.zeros(size, np.float32)
        weight[: len(rows)] = 1.0
        padded = np.concatenate([rows, np.zeros(size - len(rows), rows.dtype)])
        yield Batch({name: tensor[padded] for name, tensor in examples.tensors.items()}, weight)
