"""The assignment of a data set's rows to devices, and the fleet made from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from umbel.errors import UmbelError
from umbel_sim.data.dataset import Dataset
from umbel_sim.fleet_data import SAMPLED, Spread, Statistics, check_device, evenly_spaced
from umbel_sim.partitions.spec import Wanted

Rows = NDArray[np.integer]


class Split(Protocol):
    """The rows of each device."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64[devices], the number of each device's rows."""

    def rows(self, device: int) -> Rows:
        """The rows of one device, the same every time."""


@dataclass(frozen=True)
class Cut:
    """Rows divided over devices, each row for one device: device d has `order[offsets[d]:offsets[d + 1]]`."""

    order: Rows
    offsets: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64[devices], the number of each device's rows."""
        return np.diff(self.offsets)

    def rows(self, device: int) -> Rows:
        """The rows of one device."""
        return self.order[self.offsets[device] : self.offsets[device + 1]]


def cut(order: Rows, sizes: Rows) -> Cut:
    """The rows of `order`, the first `sizes[0]` of them for device 0 and so on."""
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return Cut(order.astype(index_type(len(order)), copy=False), offsets)


def even_sizes(total: int, devices: int) -> NDArray[np.int64]:
    """`total` in `devices` parts that differ by at most one."""
    sizes = np.full(devices, total // devices, np.int64)
    sizes[: total % devices] += 1
    return sizes


def index_type(total: int) -> type[np.integer]:
    """The smallest type that numbers `total` rows."""
    return np.int32 if total <= np.iinfo(np.int32).max else np.int64


@dataclass(frozen=True)
class RowFleet:
    """A fleet whose devices have rows of one data set."""

    dataset: Dataset
    split: Split
    sizes: NDArray[np.int64]

    @property
    def devices(self) -> int:
        """The number of devices."""
        return len(self.sizes)

    def size(self, device: int) -> int:
        """Number of examples of `device`."""
        check_device(device, self.devices)
        return int(self.sizes[device])

    def examples(self, device: int) -> Mapping[str, NDArray[Any]]:
        """Copies of the rows of `device`."""
        check_device(device, self.devices)
        rows = self.split.rows(device)
        return {name: array[rows] for name, array in self.dataset.train.items()}

    def statistics(self, sampled: int = SAMPLED) -> Statistics:
        """The distribution of examples and labels over the devices."""
        devices = evenly_spaced(self.devices, sampled)
        classes, places = np.unique(self.dataset.labels, return_inverse=True)
        histogram = np.zeros((len(devices), len(classes)), np.int32)
        for row, device in enumerate(devices):
            histogram[row] = np.bincount(places[self.split.rows(int(device))], minlength=len(classes))
        present = np.count_nonzero(histogram, axis=1)
        return Statistics(self.devices, Spread.of(self.sizes), Spread.of(present), classes, devices, histogram)


def row_fleet(wanted: Wanted, split: Split) -> RowFleet:
    """The fleet of a split; raises UmbelError when a device has fewer examples than it should."""
    sizes = split.sizes
    least = int(np.argmin(sizes))
    if sizes[least] < wanted.minimum:
        raise UmbelError(
            f"partition {wanted.spec.text!r}: device {least} would have {sizes[least]} of the examples of "
            f"{wanted.dataset.name}, at least {wanted.minimum} were expected; lower --min-examples, take fewer devices or "
            "another partition"
        )
    return RowFleet(wanted.dataset, split, sizes)
