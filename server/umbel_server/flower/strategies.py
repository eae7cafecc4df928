"""Flower's strategies by name, with their options checked and their state as tensors."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg

from umbel.errors import UmbelError
from umbel.tensors import Tensors

STRATEGIES: dict[str, type[FedAvg]] = {
    "fedavg": flower.FedAvg,
    "fedprox": flower.FedProx,
    "fedavgm": flower.FedAvgM,
    "fedadam": flower.FedAdam,
    "fedyogi": flower.FedYogi,
    "fedadagrad": flower.FedAdagrad,
    "fedmedian": flower.FedMedian,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "krum": flower.Krum,
    "multikrum": flower.MultiKrum,
    "bulyan": flower.Bulyan,
    "qfedavg": flower.QFedAvg,
}
_OURS = {
    # Devices are selected by umbel_server.selection, seeded; the strategy takes all that it is shown.
    "fraction_train": 1.0,
    "fraction_evaluate": 0.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 0,
    "min_available_nodes": 1,
    "weighted_by_key": "num-examples",
}
_MOST = 10**6


class OptionRange(NamedTuple):
    """The numbers that an option of a strategy may have: `least` to `most`, without those that `above` and `below` exclude."""

    least: float
    most: float
    above: bool = False
    below: bool = False
    whole: bool = False

    def __str__(self) -> str:
        least = f"{'above' if self.above else 'from'} {self.least:g}"
        most = f"{'to below' if self.below else 'to'} {self.most:,.15g}"
        return f"{'a whole number' if self.whole else 'a number'} {least} {most}"

    def holds(self, value: float) -> bool:
        """Whether `value` is in the range; NaN is in none."""
        if not self.least <= value <= self.most or (self.whole and value != int(value)):
            return False
        return not (self.above and value == self.least) and not (self.below and value == self.most)


_RATE, _DECAY = OptionRange(0, _MOST, above=True), OptionRange(0, 1, below=True)
RANGES: dict[str, OptionRange] = {
    "proximal_mu": OptionRange(0, _MOST),
    "server_learning_rate": _RATE,
    "server_momentum": _DECAY,
    "eta": _RATE,
    "eta_l": _RATE,
    "beta_1": _DECAY,
    "beta_2": _DECAY,
    "tau": _RATE,
    "beta": OptionRange(0, 0.5, below=True),
    "num_malicious_nodes": OptionRange(0, _MOST, whole=True),
    "num_nodes_to_select": OptionRange(1, _MOST, whole=True),
    "client_learning_rate": _RATE,
    "q": OptionRange(0, 100),
}
"""The range of every option, by its name, which means the same in all strategies."""
_MOMENTS, _MOMENTUM = ("m_t", "v_t"), "momentum_vector"


def options_of(name: str) -> list[str]:
    """The options of a strategy that are numbers and not ours to set; raises UmbelError on an unknown name."""
    if name not in STRATEGIES:
        raise UmbelError(f"no strategy {name!r}; there are {', '.join(STRATEGIES)}")
    parameters = inspect.signature(STRATEGIES[name].__init__).parameters.values()
    return sorted(p.name for p in parameters if p.annotation in (int, float) and p.name not in _OURS)


def make_strategy(name: str, options: Mapping[str, float], learning_rate: float) -> FedAvg:
    """The Flower strategy `name` with `options`; QFedAvg's client learning rate is `learning_rate` unless given.

    Raises UmbelError on an unknown name or option, or a value outside its range.
    """
    known = options_of(name)
    for option in options:
        if option not in known:
            raise UmbelError(f"strategy {name} has no option {option!r}; it has {', '.join(known) or 'none'}")
        if not RANGES[option].holds(options[option]):
            raise UmbelError(f"strategy {name}: option {option} should be {RANGES[option]}, got {options[option]:.15g}")
    arguments: dict[str, object] = {
        option: int(value) if RANGES[option].whole else float(value) for option, value in options.items()
    }
    if name == "qfedavg":
        arguments = {"client_learning_rate": learning_rate, "train_loss_key": "loss", **arguments}
    try:
        return STRATEGIES[name](**_OURS, **arguments)  # type: ignore[arg-type]
    except ValueError as error:
        raise UmbelError(f"strategy {name}: {error}") from error


def state_of(strategy: FedAvg) -> Tensors:
    """What a strategy remembers between rounds (server momentum, moments of FedOpt) as tensors; often nothing."""
    state: Tensors = {}
    for moment in _MOMENTS:
        for name, value in (getattr(strategy, moment, None) or {}).items():
            state[f"{moment}/{name}"] = np.asarray(value)
    if momentum := getattr(strategy, _MOMENTUM, None):
        # FedAvgM keeps a list in the order of its weights; names outlive an order.
        for name, value in zip(strategy.current_arrays, momentum, strict=True):  # type: ignore[attr-defined]
            state[f"{_MOMENTUM}/{name}"] = np.asarray(value)
    return state


@contextmanager
def unchanged_by_failure(strategy: FedAvg) -> Iterator[None]:
    """Make a strategy what it was before the block when that raises."""
    before = dict(vars(strategy))  # Flower's strategies replace what they remember, they do not write into it
    try:
        yield
    except BaseException:
        vars(strategy).clear()
        vars(strategy).update(before)
        raise


def restore(strategy: FedAvg, state: Tensors, order: Sequence[str]) -> None:
    """Make a fresh strategy remember what `state_of` gave; `order` is that of the weights it will be given."""
    for moment in _MOMENTS:
        values = {key.partition("/")[2]: value for key, value in state.items() if key.startswith(f"{moment}/")}
        if values:
            setattr(strategy, moment, values)
    if any(key.startswith(f"{_MOMENTUM}/") for key in state):
        setattr(strategy, _MOMENTUM, [state[f"{_MOMENTUM}/{name}"] for name in order])
