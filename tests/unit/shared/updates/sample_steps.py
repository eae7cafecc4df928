"""Steps of the kinds that a pipeline is made for, as small as they can be."""

import math
from dataclasses import dataclass

import numpy as np

from umbel.errors import TensorError
from umbel.tensors import Tensors, WeightSpec
from umbel.updates import Specs, Step, Training


@dataclass(frozen=True)
class Clip(Step):
    """Scales a delta down to an L2 norm of at most `most`."""

    most: float

    def encode(self, tensors: Tensors, training: Training) -> Tensors:
        norm = math.sqrt(sum(float(np.square(tensor, dtype=np.float64).sum()) for tensor in tensors.values()))
        scale = np.float32(min(1.0, self.most / norm) if norm else 1.0)
        return {name: np.asarray(tensor * scale) for name, tensor in tensors.items()}

    def vet(self, delta: Tensors, norm: float) -> None:
        if norm > self.most * 1.001:
            raise TensorError(f"a norm of at most {self.most:g} was expected after clipping, it is {norm:g}")


@dataclass(frozen=True)
class Largest(Step):
    """Sends the `count` largest elements of each tensor, with their places."""

    count: int

    def specs(self, specs: Specs) -> Specs:
        made: list[WeightSpec] = []
        for spec in specs:
            kept = (min(self.count, math.prod(spec.shape)),)
            made += [WeightSpec(spec.name, kept, spec.dtype), WeightSpec(f"{spec.name}@", kept, "int64")]
        return tuple(made)

    def encode(self, tensors: Tensors, training: Training) -> Tensors:
        made: Tensors = {}
        for name, tensor in tensors.items():
            flat = tensor.reshape(-1)
            places = np.sort(np.argsort(-np.abs(flat), kind="stable")[: self.count])
            made |= {name: flat[places], f"{name}@": places}
        return made

    def decode(self, tensors: Tensors, specs: Specs) -> Tensors:
        made: Tensors = {}
        for spec in specs:
            places, flat = tensors[f"{spec.name}@"], np.zeros(math.prod(spec.shape), spec.dtype)
            if places.size and not (places[0] >= 0 and places[-1] < flat.size and (np.diff(places) > 0).all()):
                raise TensorError(f"places in {spec.name!r} should ascend and be below {flat.size}")
            flat[places] = tensors[spec.name]
            made[spec.name] = flat.reshape(spec.shape)
        return made


class Int8(Step):
    """Rounds float32 tensors to int8 with a scale each, up or down at random."""

    def specs(self, specs: Specs) -> Specs:
        made: list[WeightSpec] = []
        for spec in specs:
            floats = spec.dtype == "float32"
            made.append(WeightSpec(spec.name, spec.shape, "int8" if floats else spec.dtype))
            made += [WeightSpec(f"{spec.name}*", (), "float32")] if floats else []
        return tuple(made)

    def encode(self, tensors: Tensors, training: Training) -> Tensors:
        random, made = training.generator("int8"), Tensors()
        for name, tensor in tensors.items():
            if tensor.dtype != np.float32:
                made[name] = tensor
                continue
            scale = max(float(np.abs(tensor).max(initial=0.0)) / 127, 1e-30)
            draws = np.array([random.random() for _ in range(tensor.size)]).reshape(tensor.shape)
            made[name] = np.clip(np.floor(tensor / scale + draws), -127, 127).astype(np.int8)
            made[f"{name}*"] = np.asarray(scale, np.float32)
        return made

    def decode(self, tensors: Tensors, specs: Specs) -> Tensors:
        return {
            spec.name: tensors[spec.name] * tensors[f"{spec.name}*"] if spec.dtype == "float32" else tensors[spec.name]
            for spec in specs
        }


@dataclass(frozen=True)
class Mask(Step):
    """Adds a mask that cancels in the sum of all devices: only the sum can be decoded, from integers modulo 2**32."""

    mask: int
    unit: float = 2.0**-16

    def specs(self, specs: Specs) -> Specs:
        return tuple(WeightSpec(spec.name, spec.shape, "uint32") for spec in specs)

    def encode(self, tensors: Tensors, training: Training) -> Tensors:
        return {
            name: (np.rint(tensor.astype(np.float64) * training.examples / self.unit).astype(np.int64) + self.mask)
            .astype(np.uint32)
            .reshape(tensor.shape)
            for name, tensor in tensors.items()
        }

    def opened(self, total: np.ndarray) -> np.ndarray:
        """The sum of examples * delta, from the sum of what was sent."""
        return total.astype(np.int32) * self.unit
