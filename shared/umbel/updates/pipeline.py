"""The pipeline of one run: its steps in order, between a weight delta and the file that travels."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import TensorError, UmbelError
from umbel.tensors import Tensors, WeightSpec, check_specs, dump
from umbel.updates import weight_delta
from umbel.updates.safetensors_layout import joined, views
from umbel.updates.step import Step, Training
from umbel.updates.weight_delta import Decoded, SumSquares


class RefusedUpdate(UmbelError):
    """An update that is not folded; the message names the device, what was expected and what came."""


class Pipeline:
    """The steps of a run, in the order in which a device takes them, for deltas of `specs`.

    Without steps a delta travels unchanged. The device's half is `apply`, `encode` and `whole_weights`; the server's half
    is `largest`, `decode`, `undo`, `vet` and `fold`.
    """

    def __init__(self, specs: Sequence[WeightSpec], steps: Sequence[Step] = ()) -> None:
        self.specs, self._steps = tuple(specs), tuple(steps)
        self._stages = [self.specs]
        for step in self._steps:
            self._stages.append(step.specs(self._stages[-1]))
        # In the order of names, as in a file.
        self._shapes = {spec.name: spec.shape for spec in sorted(specs, key=lambda spec: spec.name)}
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        self.size = sum(sizes)
        self.starts = dict(zip(self._shapes, accumulate([0, *sizes]), strict=False))
        """The index at which each tensor begins in the vector that `fold` adds, which has `size` elements."""

    @property
    def is_plain(self) -> bool:
        """Whether the delta travels unchanged, because there are no steps."""
        return not self._steps

    @property
    def travelling(self) -> tuple[WeightSpec, ...]:
        """The names, shapes and dtypes of the tensors that travel."""
        return self._stages[-1]

    # The device's half.

    def apply(self, delta: Tensors, training: Training) -> Tensors:
        """Pass a delta of `specs` through all steps: the tensors that travel."""
        for step in self._steps:
            delta = step.encode(delta, training)
        return delta

    def encode(self, delta: Tensors, training: Training) -> bytes:
        """The safetensors file that travels; the same delta and training give the same bytes."""
        return dump(self.apply(delta, training))

    def whole_weights(self, after: Tensors, training: Training) -> Tensors:
        """The weights after training, with the steps applied to their delta, for Flower's own grid.

        Strategies on that grid average whole weights, not deltas. Raises UmbelError when a step changes names, shapes or
        dtypes.
        """
        if not self._steps:
            return after  # subtracting and adding the weights would round
        if self.travelling != self.specs:
            raise UmbelError(
                "this run compresses or masks its updates, which Flower's own grid cannot carry; run it on Umbel"
            )
        delta = self.apply(weight_delta.difference(after, training.before), training)
        return {name: weight + delta[name] for name, weight in training.before.items()}

    # The server's half.

    @property
    def largest_header(self) -> int:
        """The largest header, in bytes, of the file that travels."""
        return weight_delta.largest_header(self.travelling)

    @property
    def largest(self) -> int:
        """The largest file, in bytes, that a device may send."""
        return weight_delta.largest_file(self.travelling)

    def decode(self, file: NDArray[np.uint8], ends: Iterable[int], squares: SumSquares) -> Decoded:
        """The delta in a file that is still arriving; without steps its tensors are views of `file`.

        `ends` yields the number of bytes that have arrived so far; `squares` sums the squares of each piece. Raises
        TensorError when the file does not parse, or cannot come from a device that takes these steps.
        """
        decoded = weight_delta.decode(file, ends, self.largest_header, squares)
        return decoded if self.is_plain else Decoded(self.undo(decoded.delta), {}, None)

    def decode_again(self, file: bytes) -> Tensors:
        """The delta in a whole file; raises TensorError as `decode` does."""
        return self.undo(views(file, self.largest_header))

    def undo(self, tensors: Tensors) -> Tensors:
        """Undo all steps: the delta from the tensors that travelled. Raises TensorError when they cannot be right."""
        if self._steps:
            check_specs(tensors, self.travelling, "what was sent")
        for step, specs in zip(reversed(self._steps), reversed(self._stages[:-1]), strict=True):
            tensors = step.decode(tensors, specs)
        return tensors

    def vet(
        self, who: str, delta: Mapping[str, NDArray[Any]], squares: SumSquares, known: float | None = None
    ) -> float:
        """Check the delta of device `who` and return its L2 norm.

        `known` is the sum of its squares if `decode` has computed it; otherwise `squares` computes it. Raises RefusedUpdate
        when names, shapes or dtypes are not those of `specs`, when a value is not finite, or when a step refuses the delta.
        """
        try:
            check_specs(delta, self.specs, f"the update of {who}")
        except TensorError as error:
            raise RefusedUpdate(str(error)) from error
        try:
            norm = weight_delta.norm(delta, squares, known)
            for step in reversed(self._steps):
                step.vet(dict(delta), norm)
        except TensorError as error:
            raise RefusedUpdate(f"the update of {who}: {error}") from error
        return norm

    def fold(
        self,
        deltas: Sequence[Mapping[str, NDArray[Any]]],
        weights: Sequence[float],
        add: Callable[[Sequence[NDArray[Any]], Sequence[float]], None],
    ) -> None:
        """Call `add` with checked deltas, each as one vector of `size` elements, and their weights in the sum.

        A vector is a view, not a copy, when the tensors lie one after the other in memory. Raises TensorError on a wrong
        shape.
        """
        add([self._vector(delta) for delta in deltas], weights)

    def _vector(self, delta: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        for name, shape in self._shapes.items():
            if delta[name].shape != shape:
                raise TensorError(f"tensor {name!r} should have shape {list(shape)}, got {list(delta[name].shape)}")
        return joined([delta[name] for name in self._shapes])


def largest_update(specs: Sequence[WeightSpec]) -> int:
    """The largest file, in bytes, that a device may send as the update of weights of `specs`."""
    return Pipeline(specs).largest
