"""Devices with unequal numbers of examples: sizes in proportion to exp(sigma g), g a standard normal draw a device."""

import numpy as np
from numpy.typing import NDArray

from umbel_sim.fleet_data import Fleet
from umbel_sim.partitions.rows import cut, even_sizes, row_fleet
from umbel_sim.partitions.spec import Partition, Wanted


def quantity(wanted: Wanted) -> Fleet:
    """All rows, each for one device, in a seeded order."""
    sigma = wanted.spec.positive(wanted.spec.parameter or "1", "SIGMA")
    wanted.check_enough(wanted.dataset.count)
    rng = wanted.generator()
    order = rng.permutation(wanted.dataset.count)
    sizes = log_normal_sizes(len(order), wanted.devices, sigma, rng, wanted.minimum)
    return row_fleet(wanted, cut(order, sizes))


def log_normal_sizes(
    total: int, devices: int, sigma: float, rng: np.random.Generator, minimum: int
) -> NDArray[np.int64]:
    """int64[devices] that add up to `total`; those that would be under `minimum` are lifted to it at the others' cost.

    `total` is at least `devices * minimum`.
    """
    exponents = sigma * rng.standard_normal(devices)
    weights = np.exp(exponents - exponents.max())
    lifted = np.zeros(devices, bool)
    shares = np.full(devices, float(minimum))
    while not lifted.all():
        free = ~lifted
        shares[free] = (total - minimum * lifted.sum()) * weights[free] / weights[free].sum()
        low = free & (shares < minimum)
        if not low.any():
            break
        lifted |= low
        shares[low] = minimum
    sizes: NDArray[np.int64] = np.floor(shares).astype(np.int64)
    left = int(total - sizes.sum())
    sizes[np.argsort(sizes - shares, kind="stable")[:left]] += 1
    return sizes


def sizes_for(wanted: Wanted, total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Sizes of a partition with the option `quantity=SIGMA`: even ones without it.

    Raises UmbelError when `total` is too few for all devices.
    """
    wanted.check_enough(total)
    sigma = wanted.spec.option("quantity")
    if not sigma:
        return even_sizes(total, wanted.devices)
    return log_normal_sizes(total, wanted.devices, wanted.spec.positive(sigma, "quantity"), rng, wanted.minimum)


PARTITION = Partition("quantity:SIGMA", "sizes in a log-normal distribution, labels alike", quantity)
