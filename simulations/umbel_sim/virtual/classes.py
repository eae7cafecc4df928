"""Classes of virtual devices: their speed of computing and of communication, and how often they drop out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

from umbel.errors import UmbelError
from umbel_sim.virtual.seeds import generator


@dataclass(frozen=True)
class DeviceClass:
    """The properties of one class of devices. Rates are in bytes a second, powers in watts, `memory` in MB (10^6 bytes).

    A training step takes `seconds_per_step`; if that is 0, its time follows from its operations at `gflops` (10^9
    operations a second). Each device has its own constant speed factor, log-normal with sigma `spread`. With probability
    `drop_out` a device that accepted an assignment vanishes during it.
    """

    name: str
    gflops: float = 1.0
    seconds_per_step: float = 0.0
    download: float = 2.5e6
    upload: float = 1e6
    latency: float = 0.1
    memory: float = 4000.0
    drop_out: float = 0.0
    spread: float = 0.3
    training_watts: float = 3.0
    network_watts: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "name" and not 0 <= value < math.inf:
                raise UmbelError(f"device class {self.name}: {field.name} should be at least 0, got {value}")
        if not (self.gflops and self.download and self.upload):
            raise UmbelError(f"device class {self.name}: gflops, download and upload should be positive")
        if self.drop_out > 1 or self.spread > 3:
            raise UmbelError(f"device class {self.name}: drop_out should be at most 1 and spread at most 3")

    def step_seconds(self, operations: float) -> float:
        """Seconds of a training step of so many operations, on a device of the class's own speed."""
        return self.seconds_per_step or operations / (self.gflops * 1e9)


CLASSES = {
    own.name: own
    for own in (
        DeviceClass("phone-low", gflops=1.0, download=1e6, upload=4e5, memory=2000.0, training_watts=2.5),
        DeviceClass("phone-high", gflops=8.0, download=6e6, upload=2e6, memory=8000.0, training_watts=4.0),
        DeviceClass("vehicle", gflops=20.0, download=3e6, upload=1e6, latency=0.2, memory=16000.0, training_watts=15.0),
        DeviceClass("gateway", gflops=4.0, download=1e7, upload=1e7, latency=0.02, training_watts=6.0, spread=0.1),
        DeviceClass("even", gflops=8.0, download=6e6, upload=2e6, spread=0.0),
    )
}
"""Orders of magnitude for 32-bit training on one or two cores, to be replaced by what a fleet measures."""


@dataclass(frozen=True)
class Mix:
    """The share of each class in a fleet."""

    classes: tuple[DeviceClass, ...]
    shares: tuple[float, ...]

    def class_of(self, seed: int, device: int) -> DeviceClass:
        """The class of a device, drawn by the seed."""
        if len(self.classes) == 1:
            return self.classes[0]
        return _drawn(self, seed, device)

    def speed_of(self, seed: int, device: int) -> float:
        """The factor by which a device's times differ from those of its class."""
        spread = self.class_of(seed, device).spread
        return generator(seed, "speed", device).lognormvariate(0.0, spread) if spread else 1.0


@lru_cache(maxsize=16384)
def _drawn(mix: Mix, seed: int, device: int) -> DeviceClass:
    return generator(seed, "class", device).choices(mix.classes, mix.shares)[0]


def mix(texts: Sequence[str]) -> Mix:
    """The mix that texts such as "phone-low=0.7" and "vehicle:drop_out=0.1,gflops=30=0.3" describe; empty: "phone-high".

    Each is a class, changes to it after a colon, and its share (default 1). Raises UmbelError.
    """
    classes, shares = [], []
    for text in texts or ("phone-high",):
        body, share = text, 1.0
        head, sign, tail = text.rpartition("=")
        settings = head.partition(":")[2]
        if sign and (":" not in text or (settings and settings.count("=") > settings.count(","))):
            body, share = head, _number(tail, text)
        classes.append(_class(body, text))
        shares.append(share)
    if not 0 < sum(shares) < math.inf or min(shares) < 0:
        raise UmbelError(f"the shares of device classes should be positive numbers, got {', '.join(texts)}")
    return Mix(tuple(classes), tuple(shares))


def _class(body: str, text: str) -> DeviceClass:
    name, _, changes = body.partition(":")
    if name not in CLASSES:
        raise UmbelError(f"there is no device class {name!r}; there are {', '.join(CLASSES)}")
    known = {field.name for field in fields(DeviceClass)} - {"name"}
    values: dict[str, float] = {}
    for change in filter(None, changes.split(",")):
        field, _, value = change.partition("=")
        if field not in known:
            raise UmbelError(f"a device class has no {field!r}; it has {', '.join(sorted(known))}")
        values[field] = _number(value, text)
    return replace(CLASSES[name], **values)  # type: ignore[arg-type]


def _number(value: str, text: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        sentence = f"expected CLASS[:FIELD=NUMBER,...][=SHARE] such as phone-low:drop_out=0.1=0.5, got {text!r}"
        raise UmbelError(sentence) from error
