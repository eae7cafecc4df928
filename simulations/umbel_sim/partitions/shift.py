"""Devices with different sensors: labels are split evenly, and each device has its own contrast, brightness and noise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import UmbelError
from umbel_sim.fleet_data import SAMPLED, Fleet, Statistics
from umbel_sim.partitions.quantity import sizes_for
from umbel_sim.partitions.rows import cut, row_fleet
from umbel_sim.partitions.spec import Partition, Wanted, device_generator

STREAM = 2
NOISE = 0.25
"""Noise a unit of strength: as much of it as of brightness would hide what the examples show."""
MOST_STRENGTH = 10.0
"""Contrasts of exp(10 g) are beyond any sensor, and far beyond them floats overflow."""
MEASURED = 1000
"""Examples that the mean and the standard deviation of an input are taken from."""


@dataclass(frozen=True)
class ShiftedFleet:
    """`fleet` with a feature shift: each device distorts its float inputs as a sensor of its own would.

    With m and d the mean and standard deviation of an input over the data, and g1, g2, g3 standard normal draws of the
    device, x becomes m + exp(s g1) (x - m) + s g2 d + 0.25 s |g3| d noise, for the strength s. Nothing is clipped.

    Attributes:
        scales: (m, d) of each input that is shifted.
    """

    fleet: Fleet
    strength: float
    scales: Mapping[str, tuple[float, float]]
    seed: int

    @property
    def devices(self) -> int:
        """The number of devices."""
        return self.fleet.devices

    def size(self, device: int) -> int:
        """Number of examples of `device`."""
        return self.fleet.size(device)

    def examples(self, device: int) -> Mapping[str, NDArray[Any]]:
        """The examples of `device`, with its distortion."""
        examples = dict(self.fleet.examples(device))
        rng = device_generator(self.seed, STREAM, device)
        for name, (mean, deviation) in self.scales.items():
            x, (contrast, brightness, noise) = examples[name], rng.standard_normal(3).tolist()
            seen = mean + math.exp(self.strength * contrast) * (x - mean) + self.strength * brightness * deviation
            seen += NOISE * self.strength * abs(noise) * deviation * rng.standard_normal(x.shape, dtype=np.float32)
            examples[name] = seen.astype(x.dtype)
        return examples

    def statistics(self, sampled: int = SAMPLED) -> Statistics:
        """The distribution of examples and labels over devices, which a shift does not change."""
        return self.fleet.statistics(sampled)


def shift(wanted: Wanted) -> Fleet:
    """All rows in a seeded order, each for one device."""
    dataset, rng = wanted.dataset, wanted.generator()
    strength = wanted.spec.positive(wanted.spec.parameter or "0.5", "STRENGTH")
    if strength > MOST_STRENGTH:
        raise wanted.spec.wrong(f"a STRENGTH of at most {MOST_STRENGTH:g}", wanted.spec.parameter)
    order = rng.permutation(dataset.count)
    measured = order[:MEASURED]
    scales = {
        name: (float(array[measured].mean(dtype=np.float64)), float(array[measured].std(dtype=np.float64)))
        for name, array in dataset.train.items()
        if name not in dataset.targets and array.dtype.kind == "f"
    }
    if not scales:
        raise UmbelError(f"partition 'shift': {dataset.name} has no input of floats to shift; take another partition")
    return ShiftedFleet(
        row_fleet(wanted, cut(order, sizes_for(wanted, dataset.count, rng))), strength, scales, wanted.seed
    )


PARTITION = Partition(
    "shift:STRENGTH[,quantity=SIGMA]",
    "labels alike, each device with its own contrast, brightness and noise of inputs",
    shift,
    keys=("quantity",),
)
