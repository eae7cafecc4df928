"""Devices with a few labels each: rows sorted by label are cut into shards, and each device gets some of them.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized Data,
AISTATS 2017 (arXiv 1602.05629), who give 2 shards of 300 MNIST digits to each of 100 devices.
"""

import numpy as np
from numpy.typing import NDArray

from umbel.errors import UmbelError
from umbel_sim.fleet_data import Fleet
from umbel_sim.partitions.rows import Cut, cut, even_sizes, row_fleet
from umbel_sim.partitions.spec import Partition, Wanted


def shards(labels: NDArray[np.integer], devices: int, each: int, rng: np.random.Generator) -> Cut:
    """`each` shards for each device; `labels` has at least `devices * each` rows."""
    shuffled = rng.permutation(len(labels))
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = even_sizes(len(labels), devices * each)
    owner = rng.permutation(np.repeat(np.arange(devices), each))
    owner_of_row = np.repeat(owner, sizes)
    order = ordered[np.argsort(owner_of_row, kind="stable")]
    return cut(order, np.bincount(owner, weights=sizes, minlength=devices).astype(np.int64))


def _fleet(wanted: Wanted) -> Fleet:
    each = wanted.spec.count(wanted.spec.parameter or "2", "K shards a device")
    count = wanted.dataset.count
    if wanted.devices * each > count:
        raise UmbelError(
            f"partition {wanted.spec.text!r}: {wanted.devices} devices with {each} shards each need "
            f"{wanted.devices * each} examples, {wanted.dataset.name} has {count} to train; take fewer devices or shards"
        )
    return row_fleet(wanted, shards(wanted.dataset.labels, wanted.devices, each, wanted.generator()))


PARTITION = Partition("shards:K", "K shards a device of the examples sorted by label", _fleet)
