"""The text form of a partition: `name[:parameter[,key=value]]`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from umbel.errors import UmbelError
from umbel_sim.data.dataset import Dataset
from umbel_sim.fleet_data import Fleet


@dataclass(frozen=True)
class Spec:
    """A partition as written: `dirichlet:0.3,quantity=1`; a key may also come first, `iid:quantity=1`.

    Attributes:
        grammar: how it should be written, for errors.
        parameter: what stands for itself, "" when nothing does.
        options: the values by their keys.
    """

    text: str
    grammar: str
    parameter: str = ""
    options: Mapping[str, str] | None = None

    def wrong(self, expected: str, got: str) -> UmbelError:
        """The error that says what was expected."""
        return UmbelError(f"partition {self.text!r}: expected {expected}, got {got!r}; write {self.grammar}")

    def option(self, key: str) -> str:
        """The value of `key`; "" when it was not given."""
        return (self.options or {}).get(key, "")

    def positive(self, value: str, what: str) -> float:
        """`value` as a positive finite number."""
        try:
            number = float(value)
        except ValueError:
            number = np.nan
        if not (number > 0 and np.isfinite(number)):
            raise self.wrong(f"{what}, a positive number", value)
        return number

    def count(self, value: str, what: str) -> int:
        """`value` as a number of at least 1."""
        if not (value.isascii() and value.isdigit() and int(value) >= 1):
            raise self.wrong(f"{what}, a whole number of at least 1", value)
        return int(value)


@dataclass(frozen=True)
class Wanted:
    """The inputs of a partition.

    Attributes:
        seed: the same seed gives the same bytes; at least 0.
        minimum: examples that each device should have at least.
    """

    spec: Spec
    dataset: Dataset
    devices: int
    seed: int
    minimum: int

    def check_enough(self, total: int) -> None:
        """Raise UmbelError when `total` examples are fewer than the devices should have together."""
        needed = self.devices * self.minimum
        if total < needed:
            raise UmbelError(
                f"partition {self.spec.text!r}: {self.devices} devices with at least {self.minimum} examples each need {needed}, "
                f"there are {total} to share out of {self.dataset.name}; take fewer devices, a lower --min-examples, or let "
                "devices have the same examples: iid:100 or dirichlet:0.3,each=100"
            )

    def generator(self) -> np.random.Generator:
        """The random generator for draws that concern the whole fleet."""
        return np.random.default_rng(np.random.SeedSequence(self.seed))


@dataclass(frozen=True)
class Partition:
    """One way to split examples over devices.

    Attributes:
        grammar: how it is written, as in `shards:K`.
        meaning: what it does, in half a sentence.
        keys: the options it takes.
        make: the fleet, from what is wanted.
    """

    grammar: str
    meaning: str
    make: Callable[[Wanted], Fleet]
    parameter: bool = True
    keys: tuple[str, ...] = ()


def parse(text: str, partitions: Mapping[str, Partition]) -> tuple[Partition, Spec]:
    """The partition that `text` names, and its parameters; raises UmbelError that shows the grammar."""
    name, colon, rest = text.partition(":")
    if name not in partitions:
        known = ", ".join(partition.grammar for partition in partitions.values())
        raise UmbelError(f"no partition {name!r}; there are {known}")
    partition = partitions[name]
    empty = Spec(text, partition.grammar)
    if colon and not rest:
        raise empty.wrong("a parameter after the colon", text)
    parameter, options = "", {}
    for place, part in enumerate(rest.split(",") if rest else ()):
        key, equals, value = part.partition("=")
        if not equals and place == 0 and partition.parameter and part:
            parameter = part
        elif equals and key in partition.keys and key not in options and value:
            options[key] = value
        else:
            keys = " or ".join(f"{key}=..." for key in partition.keys)
            raise empty.wrong(f"nothing but {keys}" if keys else "no such part", part)
    return partition, Spec(text, partition.grammar, parameter, options)


def device_generator(seed: int, stream: int, device: int) -> np.random.Generator:
    """For what is drawn for one device, whenever it is asked for; `stream` keeps what is drawn for different ends apart."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, device)))
