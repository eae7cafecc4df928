"""Partitions: ways to split a data set over devices, usually unequally as on real fleets. One partition a file."""

from umbel.errors import UmbelError
from umbel_sim.data.dataset import Dataset
from umbel_sim.fleet_data import Fleet, Statistics
from umbel_sim.partitions import dirichlet, iid, natural, quantity, shards, shift
from umbel_sim.partitions.spec import Wanted, parse

__all__ = ["PARTITIONS", "Fleet", "Statistics", "partition"]

PARTITIONS = {
    "iid": iid.PARTITION,
    "dirichlet": dirichlet.PARTITION,
    "shards": shards.PARTITION,
    "quantity": quantity.PARTITION,
    "natural": natural.PARTITION,
    "shift": shift.PARTITION,
}
"""The partitions by name; `grammar` and `meaning` of each are for a command's help."""


def partition(spec: str, dataset: Dataset, devices: int, seed: int, min_examples: int = 1) -> Fleet:
    """The training examples of `dataset` split over `devices` as `spec` says: `name[:parameter[,key=value]]`, one of
    PARTITIONS. The same seed gives the same bytes.

    Raises UmbelError on a spec that is not understood, or when a device would have fewer than `min_examples`.
    """
    chosen, parsed = parse(spec, PARTITIONS)
    if devices < 1 or seed < 0 or min_examples < 0:
        raise UmbelError(
            "a fleet has at least 1 device, a seed and a minimum of examples of at least 0; "
            f"got {devices} devices, seed {seed} and {min_examples} examples"
        )
    return chosen.make(Wanted(parsed, dataset, devices, seed, min_examples))
