"""Devices that are alike: rows in a seeded order, cut evenly; or `iid:N`, N rows a device whatever the others have."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from umbel_sim.fleet_data import Fleet
from umbel_sim.partitions.quantity import sizes_for
from umbel_sim.partitions.rows import Rows, cut, row_fleet
from umbel_sim.partitions.spec import Partition, Wanted, device_generator

STREAM = 0


@dataclass(frozen=True)
class Draws:
    """Each device has `sizes[device]` different rows of `total`, drawn when asked for; two devices may have the same row, so
    a fleet may have more examples than there are.
    """

    total: int
    sizes: NDArray[np.int64]
    seed: int

    def rows(self, device: int) -> Rows:
        """The rows of one device, the same every time."""
        return device_generator(self.seed, STREAM, device).choice(self.total, int(self.sizes[device]), replace=False)


def iid(wanted: Wanted) -> Fleet:
    """`iid`: all rows, each for one device. `iid:N`: N rows a device (on average, with a quantity skew)."""
    spec, total, rng = wanted.spec, wanted.dataset.count, wanted.generator()
    if not spec.parameter:
        order = rng.permutation(total)
        return row_fleet(wanted, cut(order, sizes_for(wanted, total, rng)))
    each = spec.count(spec.parameter, "N examples a device")
    if each > total:
        raise spec.wrong(f"at most the {total} training examples of {wanted.dataset.name} a device", spec.parameter)
    sizes = np.minimum(sizes_for(wanted, each * wanted.devices, rng), total)
    return row_fleet(wanted, Draws(total, sizes, wanted.seed))


PARTITION = Partition(
    "iid[:N][,quantity=SIGMA]",
    "all alike; with N, that many examples a device, which other devices may have too",
    iid,
    keys=("quantity",),
)
