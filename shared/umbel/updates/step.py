"""One step of a pipeline: the half that runs on the device and the half that runs on the server."""

import random
from dataclasses import dataclass

from umbel.tensors import Tensors, WeightSpec

Specs = tuple[WeightSpec, ...]


@dataclass(frozen=True)
class Training:
    """Facts about a training that a step may use on the device; none of them travels.

    `before` are the weights from which training started, `examples` is the number of examples. `seed` is made of the
    assignment's seed and the device's name.
    """

    before: Tensors
    examples: int
    seed: str

    def generator(self, step: str) -> random.Random:
        """A random generator for the step named `step`: the same assignment on the same device gives the same numbers."""
        return random.Random(f"{self.seed}/update/{step}")


class Step:
    """A change of the tensors that travel. This base class changes nothing; a subclass overrides one method or more.

    Device and server make the same step from the run's settings, and both its halves are in one file of this package. The
    halves must agree: `decode` returns tensors of the specs that `encode` was given, and `encode` returns tensors of
    exactly `specs(...)`, whatever their values, so that the server knows the largest upload beforehand.

    How the known mechanisms fit:

    - Clipping: `encode` scales the delta down to the norm C; `vet` refuses a larger norm.
    - Local noise: `encode` adds noise; `vet` and `decode` change nothing. Noise for privacy must come from
      `random.SystemRandom`, because the server can repeat what `Training.generator` gives.
    - Top-k: `specs` has k values and k indices for each tensor; `decode` checks the indices and fills the rest with zeros.
    - Quantisation: `specs` has int8 values and float32 scales; `encode` rounds with `Training.generator`; `decode`
      multiplies.
    - Masks of secure aggregation: `encode` multiplies the delta by `Training.examples`, rounds it to uint32 and adds the
      masks; `specs` says uint32. The server can decode only the sum of a round. `Pipeline` does not support this yet: it
      will have to check only names, shapes and dtypes of single updates, add modulo 2**32 in `fold`, and call `decode`
      with the sum.
    - Noise on the sum (central differential privacy) changes no single update: it belongs to the aggregator, beside a
      clipping step that bounds what one device can change.
    """

    def specs(self, specs: Specs) -> Specs:
        """The names, shapes and dtypes of the tensors that `encode` returns for tensors of `specs`."""
        return specs

    def encode(self, tensors: Tensors, training: Training) -> Tensors:
        """The device's half: the tensors after this step. `tensors` are the delta, or the result of the step before."""
        return tensors

    def decode(self, tensors: Tensors, specs: Specs) -> Tensors:
        """The server's half: tensors of `specs`, restored from `tensors` that `encode` returned.

        The caller has checked names, shapes and dtypes, but not values. Raises TensorError when the values cannot be right.
        """
        return tensors

    def vet(self, delta: Tensors, norm: float) -> None:
        """Raise TensorError when no device that took this step can have sent this delta, whose L2 norm is `norm`."""
