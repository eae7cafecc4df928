"""Vetting of one update before it is folded: an update that does not fit the plan, or the other updates, is refused."""

import bisect
import math
import statistics
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from umbel.updates import Pipeline, RefusedUpdate, sum_of_squares
from umbel_server.aggregation import passes

ENOUGH = 5
"""Updates that must be accepted before their median norm bounds the others."""


class Vetting:
    """The vetting rule of one run, with the norms of the updates accepted in this round.

    `max_norm` bounds the L2 norm over all tensors of an update (0: no bound). `norm_multiple` bounds it by that many
    medians of the norms accepted before in this round, once there are ENOUGH (0: no bound). The median follows the
    order in which updates arrive, so of two runs with the same updates one may refuse what the other accepts;
    `max_norm` does not depend on order. `threads` read an update.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        max_norm: float = 0.0,
        norm_multiple: float = 0.0,
        threads: int = passes.CORES,
    ) -> None:
        self._pipeline = pipeline
        self._max_norm, self._norm_multiple = max_norm, norm_multiple
        self._squares = lambda tensor: passes.squares(tensor, threads)
        self._accepted: list[float] = []

    def clear(self) -> None:
        """Begin a round: forget the norms."""
        self._accepted.clear()

    def accept(
        self,
        who: str,
        update: Mapping[str, NDArray[Any]],
        examples: float,
        reported: int = 0,
        squares: float | None = None,
    ) -> float:
        """The L2 norm of an update that may be folded, which counts among the accepted from now on.

        `update` is a weight delta by name, `examples` is the count that the device says it trained on, `reported` the
        count that it reported before (0: none); `squares` is the sum of the delta's squares, if it was computed before. Raises
        RefusedUpdate on other names, shapes or dtypes than the pipeline's, numbers that are not finite, examples outside
        1..reported, or a norm above the bound.
        """
        most = reported if reported > 0 else math.inf
        if not 1 <= examples <= most or examples == math.inf:
            expected = f"1 to {reported} examples were expected" if reported > 0 else "at least 1 example was expected"
            raise RefusedUpdate(f"the update of {who}: {expected}, it claims {examples:g}")
        norm = self._pipeline.vet(who, update, self._squares, squares)
        self._check_norm(who, norm)
        bisect.insort(self._accepted, norm)
        return norm

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
    return sum_of_squares(update, lambda tensor: passes.squares(tensor, threads))
