"""One step of a pipeline, with the half that the device takes and the half that the server takes."""

import random
from dataclasses import dataclass

from umbel.tensors import Tensors, WeightSpec

Specs = tuple[WeightSpec, ...]


@dataclass(frozen=True)
class Training:
    """What a step may use on the device beside the tensors; none of it travels.

    `before` are the weights that the device was given, `examples` is the number of examples that it trained on. `seed` is
    the seed of the assignment and the name of the device.
    """

    before: Tensors
    examples: int
    seed: str

    def generator(self, step: str) -> random.Random:
        """The random generator of the step called `step`: the same assignment on the same device gives the same numbers."""
        return random.Random(f"{self.seed}/update/{step}")


class Step:
    """A change of the tensors that travel. Both halves here change nothing; a subclass overrides what it changes.

    A step is made from the settings of the run, on the device and on the server alike, and lives in one file of this
    package. Its halves have to agree: `decode` gives back tensors of the specs that `encode` was given, and `encode` makes
    tensors of exactly `specs(...)`, whatever their values, so that the server knows the largest upload beforehand.

    How the known mechanisms fit:

    - Clipping: `encode` scales the delta down to the norm C; `vet` refuses a larger norm.
    - Local noise: `encode` adds noise; `vet` and `decode` change nothing. Noise for privacy must come from
      `random.SystemRandom`, because the server can repeat what `Training.generator` gives.
    - Top-k: `specs` has k values and k indices for each tensor; `decode` checks the indices and fills the rest with zeros.
    - Quantisation: `specs` has int8 values and float32 scales; `encode` rounds with `Training.generator`; `decode`
      multiplies.
    - Masks of secure aggregation: `encode` multiplies the delta by `Training.examples`, rounds it to uint32 and adds the
      masks; `specs` says uint32. The server can decode only the sum of a round. Such a step will say so: `Pipeline` will
      then check names, shapes and dtypes of single updates, give `fold` an addition modulo 2**32, and call `decode` with
      the sum.
    - Noise on the sum (central differential privacy) changes no single update: it belongs to the aggregator, beside a
      clipping step that bounds what one device can change.
    """

    def specs(self, specs: Specs) -> Specs:
        """The names, shapes and dtypes of what `encode` makes of tensors of `specs`."""
        return specs

    def encode(self, tensors: Tensors, training: Training) -> Tensors:
        """The device's half: the tensors after this step. `tensors` are the delta, or what the step before made of it."""
        return tensors

    def decode(self, tensors: Tensors, specs: Specs) -> Tensors:
        """The server's half: tensors of `specs` from what `encode` made of them.

        Names, shapes and dtypes were checked, values were not. Raises TensorError when the values cannot be right.
        """
        return tensors

    def vet(self, delta: Tensors, norm: float) -> None:
        """Raise TensorError when a device that took this step cannot have sent this delta, whose L2 norm is `norm`."""
