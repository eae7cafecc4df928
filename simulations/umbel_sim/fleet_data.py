"""The examples of a simulated fleet: the interface that partitions implement and the simulator uses."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from umbel.errors import TensorError
from umbel.examples import Examples, cast, check_values
from umbel.tensors import TensorSpec

SAMPLED = 200
"""The number of devices whose labels are counted for statistics; a picture has no room for more."""


@dataclass(frozen=True)
class Spread:
    """The minimum, median and maximum of some counts, as text."""

    min: int
    median: float
    max: int

    @staticmethod
    def of(counts: NDArray[np.integer]) -> "Spread":
        """The spread of at least one count."""
        return Spread(int(counts.min()), float(np.median(counts)), int(counts.max()))


@dataclass(frozen=True)
class Statistics:
    """The distribution of examples and labels over the devices of a fleet.

    Attributes:
        devices: number of devices of the whole fleet.
        sizes: number of examples of each device (of each sampled device when sizes are not known in advance).
        labels: number of different labels of each sampled device.
        classes: int[c], all labels, ascending.
        sampled: int[s], the devices whose labels were counted, evenly spaced.
        histogram: int32[s, c], examples of each sampled device by label: the rows of a heat map.
    """

    devices: int
    sizes: Spread
    labels: Spread
    classes: NDArray[np.integer]
    sampled: NDArray[np.integer]
    histogram: NDArray[np.int32]


class Fleet(Protocol):
    """The examples of every device, made on demand: memory holds only a few numbers a device."""

    @property
    def devices(self) -> int:
        """The number of devices; devices are numbered from 0."""

    def size(self, device: int) -> int:
        """The number of examples of `device`, without making them."""

    def examples(self, device: int) -> Mapping[str, NDArray[Any]]:
        """The examples of `device`: the same bytes at every call, owned by the caller."""

    def statistics(self, sampled: int = SAMPLED) -> Statistics:
        """The distribution of examples and labels; labels are counted on at most `sampled` devices."""


def examples_of(
    fleet: Fleet, device: int, specs: Mapping[str, TensorSpec], value_counts: Mapping[str, int] = MappingProxyType({})
) -> Examples:
    """The examples of `device` in the dtypes of a plan's `specs`; raises TensorError when they do not fit them.

    `value_counts` is the plan's: labels and ids beyond it are refused.
    """
    own, tensors = fleet.examples(device), {}
    for name, spec in specs.items():
        if name not in own:
            raise TensorError(f"device {device}: array {name!r} is missing; the plan wants {', '.join(sorted(specs))}")
        try:
            tensors[name] = cast(np.asarray(own[name]), spec.dtype, f"device {device}: array {name!r}")
        except (ValueError, TypeError) as error:
            raise TensorError(f"device {device}: array {name!r} should be {spec.dtype}: {error}") from error
        if tensors[name].shape[1:] != spec.shape or tensors[name].ndim == 0:
            expected = f"[examples, {', '.join(map(str, spec.shape))}]"
            raise TensorError(
                f"device {device}: array {name!r} should have shape {expected}, got {list(tensors[name].shape)}"
            )
    counts = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        raise TensorError(
            f"device {device}: every array should have the same number of examples, at least 1; got {counts}"
        )
    check_values(tensors, value_counts, f"device {device}")
    return Examples(tensors, next(iter(counts.values())))


def evenly_spaced(devices: int, sampled: int) -> NDArray[np.int64]:
    """At most `sampled` device numbers, evenly spaced."""
    return np.unique(np.linspace(0, devices - 1, min(devices, sampled)).astype(np.int64))


def check_device(device: int, devices: int) -> None:
    """Raise IndexError unless `device` exists: a negative number would give another device's data."""
    if not 0 <= device < devices:
        raise IndexError(f"device {device} of a fleet of {devices}, numbered from 0")
