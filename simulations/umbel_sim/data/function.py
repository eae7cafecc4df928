"""A fleet whose examples come from a user's function; for the Python API."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import UmbelError
from umbel_sim.data.labels import labels_of
from umbel_sim.fleet_data import SAMPLED, Spread, Statistics, check_device, evenly_spaced

Make = Callable[[int], Mapping[str, NDArray[Any]]]


class FunctionFleet:
    """`make(device)` gives the examples of each of `devices` devices, the same ones whenever it is called.

    `size(device)` gives their number without making them; left out, they are made to be counted. `target` names the array
    that the statistics take labels from: integers or one-hot rows.
    """

    def __init__(self, make: Make, devices: int, size: Callable[[int], int] | None = None, target: str = "y") -> None:
        if devices < 1:
            raise UmbelError(f"a fleet has at least 1 device, got {devices}")
        self.devices, self._make, self._size, self._target = devices, make, size, target

    def size(self, device: int) -> int:
        """Number of examples of `device`."""
        check_device(device, self.devices)
        return self._count(self.examples(device), device) if self._size is None else self._size(device)

    def examples(self, device: int) -> Mapping[str, NDArray[Any]]:
        """The function's examples for `device`; raises UmbelError when its arrays are not examples."""
        check_device(device, self.devices)
        examples = {name: np.asarray(array) for name, array in self._make(device).items()}
        if self._size is not None and self._count(examples, device) != self._size(device):
            raise UmbelError(
                f"device {device}: {self._size(device)} examples were announced, its function gave "
                f"{self._count(examples, device)}; correct either"
            )
        return examples

    def statistics(self, sampled: int = SAMPLED) -> Statistics:
        """The distribution of examples and labels; without `size` of the sampled devices only, whose examples are made."""
        devices = evenly_spaced(self.devices, sampled)
        labels = [self._labels(int(device)) for device in devices]
        sizes = [len(row) for row in labels]
        if self._size is not None:
            sizes = [self._size(device) for device in range(self.devices)]
        classes = np.unique(np.concatenate(labels))
        histogram = np.array(
            [np.bincount(np.searchsorted(classes, row), minlength=len(classes)) for row in labels], np.int32
        )
        present = np.count_nonzero(histogram, axis=1)
        return Statistics(self.devices, Spread.of(np.array(sizes)), Spread.of(present), classes, devices, histogram)

    def _labels(self, device: int) -> NDArray[np.integer]:
        examples = self.examples(device)
        if self._target not in examples:
            raise UmbelError(
                f"device {device}: its function gave no {self._target!r}, but {', '.join(sorted(examples))}"
            )
        target = examples[self._target]
        # Tenths of one device's own targets would mean another thing on every device.
        continuous = target.dtype.kind == "f" and target.size == len(target)
        return np.zeros(len(target), np.int64) if continuous else labels_of(target)

    @staticmethod
    def _count(examples: Mapping[str, NDArray[Any]], device: int) -> int:
        counts = {name: len(array) if array.ndim else -1 for name, array in examples.items()}
        if len(set(counts.values())) != 1 or -1 in counts.values():
            raise UmbelError(f"device {device}: every array should have the same number of examples, got {counts}")
        return next(iter(counts.values()))
