"""Looking at one update before it is folded: what fits neither the plan nor the other updates is refused."""

import bisect
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import TensorError, UmbelError
from umbel.tensors import Tensors, WeightSpec
from umbel_server.aggregation import passes
from umbel_server.aggregation.safetensors_layout import neighbours, views

ENOUGH = 5
"""Accepted updates whose median norm says what is usual."""

LONGEST_NAME = 200
"""Characters of a tensor's name that a refusal shows: a device chose it."""


class RefusedUpdate(UmbelError):
    """An update that is not folded: one sentence of whose it is, what was expected and what came."""


class Vetting:
    """The rule of one run, and the norms accepted in one round.

    `max_norm` bounds the L2 norm over all tensors of an update (0: it does not). `norm_multiple` bounds it by that many
    medians of the norms accepted before in this round, once there are ENOUGH (0: it does not). The median follows the
    order in which updates come, so of two runs with the same updates one may refuse what the other accepts;
    `max_norm` does not depend on order. `threads` look at an update.
    """

    def __init__(
        self,
        specs: Sequence[WeightSpec],
        max_norm: float = 0.0,
        norm_multiple: float = 0.0,
        threads: int = passes.CORES,
    ) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in specs}
        self._max_norm, self._norm_multiple = max_norm, norm_multiple
        self._threads = threads
        self._accepted: list[float] = []

    def clear(self) -> None:
        """Begin a round: forget the norms."""
        self._accepted.clear()

    def parse(self, who: str, data: bytes | bytearray | memoryview) -> Tensors:
        """The tensors of an update's safetensors bytes, in place; raises RefusedUpdate when the bytes do not parse."""
        try:
            return views(data)
        except TensorError as error:
            raise RefusedUpdate(f"the update of {who}: {error}") from error

    def accept(
        self,
        who: str,
        update: Mapping[str, NDArray[Any]],
        examples: float,
        reported: int = 0,
        squares: float | None = None,
    ) -> float:
        """The L2 norm of an update that may be folded, which counts among the accepted from now on.

        `update` is a weight delta by name, `examples` what the device says it trained on, `reported` what it said
        before to have (0: nothing); `squares` is the sum of the delta's squares, if that was computed. Raises
        RefusedUpdate on other names, shapes or dtypes than the specs', numbers that are not finite, examples outside
        1..reported, or a norm above the bound.
        """
        most = reported if reported > 0 else math.inf
        if not 1 <= examples <= most or examples == math.inf:
            expected = f"1 to {reported} examples were expected" if reported > 0 else "at least 1 example was expected"
            raise RefusedUpdate(f"the update of {who}: {expected}, it claims {examples:g}")
        self._check_specs(who, update)
        norm = math.sqrt(squares_of(update, self._threads) if squares is None else squares)
        if not math.isfinite(norm):
            sums = {name: passes.squares(tensor) for name, tensor in update.items()}
            broken = next(
                (name for name, own in sums.items() if not math.isfinite(own)), max(sums, key=sums.__getitem__)
            )
            what = "numbers too large to square" if np.isfinite(update[broken]).all() else "NaN or infinity"
            raise RefusedUpdate(f"the update of {who}: tensor {broken!r} holds {what}")
        self._check_norm(who, norm)
        bisect.insort(self._accepted, norm)
        return norm

    def _check_specs(self, who: str, update: Mapping[str, NDArray[Any]]) -> None:
        if missing := self._specs.keys() - update.keys():
            raise RefusedUpdate(
                f"the update of {who}: tensor {min(missing)!r} is missing ({len(missing)} of {len(self._specs)} missing)"
            )
        if extra := update.keys() - self._specs.keys():
            raise RefusedUpdate(
                f"the update of {who}: tensor {min(extra)[:LONGEST_NAME]!r} is not one of the plan's {len(self._specs)} weights"
            )
        for name, spec in self._specs.items():
            tensor = update[name]
            if tensor.shape != spec.shape or tensor.dtype != self._dtypes[name]:
                raise RefusedUpdate(
                    f"the update of {who}: tensor {name!r} should be {spec.dtype}{list(spec.shape)}, "
                    f"got {tensor.dtype.name}{list(tensor.shape)}"
                )

    def _check_norm(self, who: str, norm: float) -> None:
        if self._max_norm and norm > self._max_norm:
            raise RefusedUpdate(
                f"the update of {who}: a norm of at most {self._max_norm:g} was expected, it is {norm:g}"
            )
        if self._norm_multiple and len(self._accepted) >= ENOUGH:
            usual = statistics.median(self._accepted)
            if norm > self._norm_multiple * usual:
                raise RefusedUpdate(
                    f"the update of {who}: a norm of at most {self._norm_multiple:g} times the round's median of "
                    f"{usual:g} was expected, it is {norm:g}"
                )


def squares_of(update: Mapping[str, NDArray[Any]], threads: int) -> float:
    """The sum of squares of an update's elements, by at most `threads`; not finite when one is not, or overflows."""
    tensors = [update[name] for name in sorted(update)]
    whole = neighbours(tensors) if tensors else None
    # Not fsum, which raises when squares that are finite add up to infinity.
    return float(sum(passes.squares(tensor, threads) for tensor in (tensors if whole is None else [whole])))
