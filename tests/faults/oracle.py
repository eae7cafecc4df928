"""What every checkpoint should be, in a few lines of NumPy, from nothing but the updates that the server recorded.

FedAvg: McMahan et al., AISTATS 2017, arXiv 1602.05629. FedAdam: Reddi et al., ICLR 2021, arXiv 2003.00295, with Flower's
bias correction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from umbel.tensors import Tensors

ROUNDING = 4e-6
"""Float32 keeps about 6e-8 of a number; a sum of 20 updates and a few operations lose a few tens of that."""


@dataclass(frozen=True)
class Update:
    """One folded update: how much it weighs, and the delta of every weight."""

    weight: float
    delta: Tensors


def mean_of(updates: Sequence[Update]) -> Tensors:
    """The weighted mean delta, float64."""
    total = sum(update.weight for update in updates)
    return {
        name: np.sum([u.weight * u.delta[name].astype(np.float64) for u in updates], axis=0) / total
        for name in updates[0].delta
    }


class FedAvg:
    """The weights plus the mean delta."""

    def step(self, _number: int, weights: Tensors, updates: Sequence[Update]) -> Tensors:
        """The weights after a round."""
        mean = mean_of(updates)
        return {name: weight + mean[name] for name, weight in weights.items()}


class FedAdam:
    """Adam on the mean delta; its moments live from round to round."""

    def __init__(self, eta: float, beta_1: float, beta_2: float, tau: float) -> None:
        self.eta, self.beta_1, self.beta_2, self.tau = eta, beta_1, beta_2, tau
        self.m: Tensors = {}
        self.v: Tensors = {}

    def step(self, number: int, weights: Tensors, updates: Sequence[Update]) -> Tensors:
        """The weights after round `number`."""
        mean = mean_of(updates)
        self.m = {k: self.beta_1 * self.m.get(k, 0.0) + (1 - self.beta_1) * d for k, d in mean.items()}
        self.v = {k: self.beta_2 * self.v.get(k, 0.0) + (1 - self.beta_2) * d**2 for k, d in mean.items()}
        eta = self.eta * np.sqrt(1 - self.beta_2 ** (number + 1)) / (1 - self.beta_1 ** (number + 1))
        return {k: w + eta * self.m[k] / (np.sqrt(self.v[k]) + self.tau) for k, w in weights.items()}


def oracle(strategy: str, options: Mapping[str, float]) -> FedAvg | FedAdam:
    """The oracle of a strategy."""
    return FedAvg() if strategy == "fedavg" else FedAdam(**options)


def difference(got: Tensors, expected: Tensors, updates: Sequence[Update]) -> str:
    """Where `got` is further from `expected` than float32 rounds; empty when it is nowhere."""
    for name, wanted in expected.items():
        sizes = [np.abs(wanted).max(), *(np.abs(update.delta[name]).max() for update in updates)]
        error, allowed = float(np.abs(got[name] - wanted).max()), ROUNDING * float(max(sizes))
        if not error <= allowed:
            return f"{name} differs by {error:.2e}, of which {allowed:.2e} could be rounding"
    return ""
