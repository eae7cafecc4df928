"""Devices with their own mixture of labels, drawn from a Dirichlet distribution: the smaller alpha, the fewer labels.

`of_devices`: Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification
(arXiv 1909.06335): each device draws its mixture around the whole data's, and fills its size from it. Its alpha is that of
all labels together: of ten equally frequent ones, 1.0 means Dirichlet(0.1, ..., 0.1).
`of_labels`: Yurochkin et al.: Bayesian Nonparametric Federated Learning of Neural Networks, ICML 2019 (arXiv 1905.12022):
each label's rows are shared out over the devices by one draw, so sizes differ too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from umbel.errors import UmbelError
from umbel_sim.fleet_data import Fleet
from umbel_sim.partitions.quantity import sizes_for
from umbel_sim.partitions.rows import Cut, Rows, cut, index_type, row_fleet
from umbel_sim.partitions.spec import Partition, Wanted, device_generator

ATTEMPTS = 1000
STREAM = 1
LEAST_ALPHA, MOST_ALPHA = 1e-3, 1e6
"""Beyond them a device has one label, or the whole data's mixture, and floats no longer hold what is drawn."""


def of_devices(labels: NDArray[np.integer], sizes: NDArray[np.int64], alpha: float, rng: np.random.Generator) -> Cut:
    """`sizes[d]` rows for device d, by its mixture q ~ Dirichlet(alpha p), p the labels' shares of all rows; each row is for
    one device, so a device that finds a label used up takes more of its others. `sizes` adds up to at most the rows.
    """
    by_label = ByLabel.of(labels, rng)
    order = np.empty(int(sizes.sum()), index_type(len(labels)))
    taken, place = np.zeros(len(by_label.shares), np.int64), 0
    for size in sizes:
        counts = mixed_counts(rng.dirichlet(alpha * by_label.shares), by_label.counts - taken, int(size), rng)
        for label in np.flatnonzero(counts):
            start, count = by_label.offsets[label] + taken[label], counts[label]
            order[place : place + count] = by_label.order[start : start + count]
            place += count
        taken += counts
    return cut(order, sizes)


def of_labels(
    labels: NDArray[np.integer], devices: int, alpha: float, rng: np.random.Generator, minimum: int = 1
) -> Cut:
    """Each label's rows are shared out by a draw from Dirichlet(alpha), and each device's rows are sorted. Drawn again until
    every device has at least `minimum` rows; raises UmbelError when that never happens.
    """
    for _ in range(ATTEMPTS):
        rows, owners = [], []
        for label in np.unique(labels):
            of_label = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(devices, alpha))
            cuts = (np.cumsum(shares)[:-1] * len(of_label)).astype(int)
            rows.append(of_label)
            owners.append(np.repeat(np.arange(devices), np.diff(cuts, prepend=0, append=len(of_label))))
        owner, order = np.concatenate(owners), np.concatenate(rows)
        sizes = np.bincount(owner, minlength=devices)
        if sizes.min() >= minimum:
            return cut(order[np.lexsort((order, owner))], sizes)
    raise UmbelError(
        f"no Dirichlet({alpha:g}) split of {len(labels)} rows gives each of {devices} devices {minimum} rows; "
        "take fewer devices, a larger alpha or a lower --min-examples"
    )


@dataclass(frozen=True)
class ByLabel:
    """Rows sorted by label, in a drawn order within each: label number k has `counts[k]` rows from `offsets[k]` on."""

    order: Rows
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]

    @staticmethod
    def of(labels: NDArray[np.integer], rng: np.random.Generator) -> "ByLabel":
        """The rows of `labels`."""
        shuffled = rng.permutation(len(labels)).astype(index_type(len(labels)))
        ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
        _, counts = np.unique(labels, return_counts=True)
        return ByLabel(ordered, np.cumsum(counts) - counts, counts.astype(np.int64))

    @property
    def shares(self) -> NDArray[np.float64]:
        """Each label's share of all rows."""
        shares: NDArray[np.float64] = self.counts / self.counts.sum()
        return shares


@dataclass(frozen=True)
class MixedDraws:
    """Each device has `sizes[device]` different rows by its own mixture, drawn when asked for; two devices may have the same
    row, so a fleet may have more examples than there are.
    """

    by_label: ByLabel
    alpha: float
    sizes: NDArray[np.int64]
    seed: int

    def rows(self, device: int) -> Rows:
        """The rows of one device, the same every time."""
        rng, by_label = device_generator(self.seed, STREAM, device), self.by_label
        mixture = rng.dirichlet(self.alpha * by_label.shares)
        counts = mixed_counts(mixture, by_label.counts, int(self.sizes[device]), rng)
        picked = [
            by_label.order[by_label.offsets[label] + rng.choice(by_label.counts[label], counts[label], replace=False)]
            for label in np.flatnonzero(counts)
        ]
        return np.concatenate(picked) if picked else by_label.order[:0]


def mixed_counts(
    mixture: NDArray[np.float64], available: NDArray[np.int64], size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """int64[labels] that add up to `size`, drawn by `mixture` from what is `available` of each label, at least `size` in all.

    What a label cannot give is drawn from the device's other labels, and when they are used up from all that is left.
    """
    counts = np.zeros(len(mixture), np.int64)
    while (missing := size - int(counts.sum())) > 0:
        left = available - counts
        weights = np.where(left > 0, mixture, 0.0)
        if weights.sum() < 1e-12:  # nothing of its labels is left, or what floats can hold of them
            weights = left.astype(np.float64)
        counts += np.minimum(rng.multinomial(missing, weights / weights.sum()), left)
    return counts


def _fleet(wanted: Wanted) -> Fleet:
    spec, dataset, rng = wanted.spec, wanted.dataset, wanted.generator()
    alpha = spec.positive(spec.parameter or "0.5", "ALPHA")
    if not LEAST_ALPHA <= alpha <= MOST_ALPHA:
        raise spec.wrong(f"ALPHA from {LEAST_ALPHA:g} to {MOST_ALPHA:g}", spec.parameter)
    by, each = spec.option("by") or "device", spec.option("each")
    if by not in ("device", "label"):
        raise spec.wrong("by=device or by=label", by)
    if by == "label":
        if each or spec.option("quantity"):
            raise spec.wrong("neither each nor quantity beside by=label, which draws the sizes itself", spec.text)
        wanted.check_enough(dataset.count)
        return row_fleet(wanted, of_labels(dataset.labels, wanted.devices, alpha, rng, wanted.minimum))
    if not each:
        sizes = sizes_for(wanted, dataset.count, rng)
        return row_fleet(wanted, of_devices(dataset.labels, sizes, alpha, rng))
    count = spec.count(each, "each, examples a device")
    if count > dataset.count:
        raise spec.wrong(f"at most the {dataset.count} training examples of {dataset.name} a device", each)
    sizes = np.minimum(sizes_for(wanted, count * wanted.devices, rng), dataset.count)
    return row_fleet(wanted, MixedDraws(ByLabel.of(dataset.labels, rng), alpha, sizes, wanted.seed))


PARTITION = Partition(
    "dirichlet:ALPHA[,quantity=SIGMA][,each=N][,by=label]",
    "each device its own mixture of labels; with each, N examples a device, which other devices may have too",
    _fleet,
    keys=("quantity", "each", "by"),
)
