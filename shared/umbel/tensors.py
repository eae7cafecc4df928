import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from umbel.errors import TensorError

Tensors = dict[str, NDArray[Any]]

_SHOWN = 200
"""The most characters of a tensor's name that an error shows, because a device may have chosen the name."""


class TensorSpec(msgspec.Struct, frozen=True):
    """Shape and dtype of one example's tensor, without the batch axis: `TensorSpec((8, 8, 1))`, `TensorSpec((), "int32")`."""

    shape: tuple[int, ...]
    dtype: str = "float32"


class WeightSpec(msgspec.Struct, frozen=True):
    """One weight of a model; `name` is Keras's `variable.path`, which is unique in a model, unlike `variable.name`."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    trainable: bool = True


def digest(data: bytes) -> str:
    """SHA-256 of `data` as 64 lower-case hex digits, the address of a blob."""
    return hashlib.sha256(data).hexdigest()


def dump(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Tensors as safetensors bytes; the same tensors give the same bytes."""
    return bytes(safetensors.numpy.save({name: np.asarray(t, order="C") for name, t in tensors.items()}))


def load(data: bytes) -> Tensors:
    """Tensors from safetensors bytes, in the order of names; raises TensorError when the bytes are not safetensors."""
    try:
        return dict(sorted(safetensors.numpy.load(data).items()))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise TensorError(f"expected safetensors bytes, got {len(data)} bytes that do not parse: {error}") from error


def check_specs(tensors: Mapping[str, NDArray[Any]], specs: Sequence[WeightSpec], what: str) -> None:
    """Raise TensorError unless `tensors` holds exactly the tensors of `specs`, with their shapes and dtypes."""
    expected = {spec.name: spec for spec in specs}
    if missing := expected.keys() - tensors.keys():
        raise TensorError(f"{what}: tensor {min(missing)!r} is missing ({len(missing)} of {len(expected)} missing)")
    if extra := tensors.keys() - expected.keys():
        raise TensorError(f"{what}: tensor {min(extra)[:_SHOWN]!r} is not one of the plan's {len(expected)} weights")
    for name, spec in expected.items():
        tensor = tensors[name]
        # `dtype.name` takes 10 microseconds, for each tensor of each update, so equal dtypes are tried first.
        if tensor.shape != spec.shape or (tensor.dtype != spec.dtype and tensor.dtype.name != spec.dtype):  # noqa: PLR1714
            raise TensorError(
                f"{what}: tensor {name!r} should be {spec.dtype}{list(spec.shape)}, "
                f"got {tensor.dtype.name}{list(tensor.shape)}"
            )


def check_finite(tensors: Mapping[str, NDArray[Any]], what: str) -> None:
    """Raise TensorError, beginning with `what` and naming tensor and row, when a float is NaN or infinite."""
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not (finite := np.isfinite(tensor)).all():
            row = int(finite.argmin()) // max(1, tensor[:1].size) if tensor.ndim else 0
            raise TensorError(f"{what}: tensor {name!r} holds NaN or infinity in row {row}")


def check(tensors: Mapping[str, NDArray[Any]], specs: Sequence[WeightSpec], what: str) -> None:
    """Raise TensorError unless `tensors` holds exactly the tensors of `specs`, with their shapes and dtypes, all finite."""
    check_specs(tensors, specs, what)
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise TensorError(f"{what}: tensor {name!r} holds NaN or infinity")
