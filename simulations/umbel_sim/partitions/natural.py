"""Devices as the data has them: one for each owner of examples."""

import numpy as np
from numpy.typing import NDArray

from umbel.errors import UmbelError
from umbel_sim.data.dataset import Dataset
from umbel_sim.fleet_data import Fleet
from umbel_sim.partitions.rows import Cut, cut, row_fleet
from umbel_sim.partitions.spec import Partition, Wanted


def of_owners(keys: NDArray[np.integer], owners: NDArray[np.integer]) -> Cut:
    """The rows of each of `owners` (keys, in the order of the devices), in the order of the data."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts, ends = np.searchsorted(ordered, owners), np.searchsorted(ordered, owners, side="right")
    rows = [order[start:end] for start, end in zip(starts, ends, strict=True)]
    return cut(np.concatenate(rows), ends - starts)


def chosen_owners(dataset: Dataset, devices: int, minimum: int, rng: np.random.Generator | None) -> NDArray[np.int64]:
    """The keys of `devices` owners, ascending: those with the most examples, or drawn by `rng` from those with `minimum`."""
    owners, counts = np.unique(np.asarray(dataset.keys, np.int64), return_counts=True)
    enough = np.flatnonzero(counts >= minimum)
    if devices > len(owners):
        raise UmbelError(
            f"partition 'natural': {dataset.name} has {len(owners)} owners of examples, {devices} devices were asked for; "
            "take fewer devices or another partition"
        )
    if devices > len(enough):
        short = int(np.argmax(counts < minimum))
        name = dataset.key_names[owners[short]] if dataset.key_names else str(owners[short])
        raise UmbelError(
            f"partition 'natural': {devices} devices were asked for, {len(enough)} of {len(owners)} owners in {dataset.name} "
            f"have at least {minimum} examples: {name!r}, who would be device {short}, has {counts[short]}; lower "
            "--min-examples, take fewer devices or another partition"
        )
    chosen = np.argsort(-counts, kind="stable")[:devices] if rng is None else rng.choice(enough, devices, replace=False)
    return np.asarray(owners[np.sort(chosen)])


def _fleet(wanted: Wanted) -> Fleet:
    spec, dataset, which = wanted.spec, wanted.dataset, wanted.spec.parameter or "largest"
    if dataset.keys is None:
        raise UmbelError(
            f"partition 'natural': {dataset.name} does not say who owns which example; give it a 'key' for each (an array of "
            ".npz, a column of .parquet), or take another partition"
        )
    if which not in ("largest", "random"):
        raise spec.wrong("natural:largest or natural:random", which)
    rng = wanted.generator() if which == "random" else None
    owners = chosen_owners(dataset, wanted.devices, wanted.minimum, rng)
    return row_fleet(wanted, of_owners(dataset.keys, owners))


PARTITION = Partition(
    "natural[:largest|random]",
    "a device for each owner; of more owners than devices the largest, or drawn ones",
    _fleet,
)
