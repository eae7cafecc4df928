"""A data set: examples to split over devices, and held-out examples."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import UmbelError


@dataclass(frozen=True)
class Dataset:
    """Examples to be split over devices, and held-out ones.

    Attributes:
        name: what the examples are called in reports and errors.
        train: arrays by the names of the plan's inputs and targets ('x' and 'y' for one of each); the leading axis counts
            the examples.
        test: held-out examples in the same form; may be empty.
        labels: int[n], each training example's class, for partitions by label (see labels.py).
        keys: int[n], each training example's natural owner, or None.
        key_names: what the owners are called: that of key k is `key_names[k]`; may be empty.
        targets: which of the arrays are targets; the others are inputs.
    """

    name: str
    train: Mapping[str, NDArray[Any]]
    test: Mapping[str, NDArray[Any]]
    labels: NDArray[np.integer]
    keys: NDArray[np.integer] | None = None
    key_names: tuple[str, ...] = field(default=(), repr=False)
    targets: tuple[str, ...] = ("y",)

    def __post_init__(self) -> None:
        counts = {name: len(array) for name, array in self.train.items()} | {"labels": len(self.labels)}
        if self.keys is not None:
            counts["keys"] = len(self.keys)
        if len(set(counts.values())) > 1 or not self.count:
            raise UmbelError(
                f"{self.name}: every array should have the same number of examples, at least 1; got {counts}"
            )

    @property
    def count(self) -> int:
        """Number of training examples."""
        return len(self.labels)

    @property
    def owners(self) -> int:
        """Number of natural owners that have a training example; 0 without keys."""
        return 0 if self.keys is None else len(np.unique(self.keys))


def hold_out(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """The data set with a seeded `fraction` of its training examples held out, in place of what was held out before.

    Raises UmbelError unless both parts get at least one example.
    """
    held = round(dataset.count * fraction) if 0 < fraction < 1 else 0
    if not 0 < held < dataset.count:
        raise UmbelError(
            f"{dataset.name}: the held-out share lies between 0 and 1 and leaves at least one of {dataset.count} examples "
            f"on either side; got {fraction:g}"
        )
    order = np.random.default_rng(seed).permutation(dataset.count)
    test, train = np.sort(order[:held]), np.sort(order[held:])
    return replace(
        dataset,
        train={name: array[train] for name, array in dataset.train.items()},
        test={name: array[test] for name, array in dataset.train.items()},
        labels=dataset.labels[train],
        keys=None if dataset.keys is None else dataset.keys[train],
    )
