"""Exact sums of floats: they are rounded only when they are read, so the result does not depend on the order of the addends."""

import math


class ExactFloat:
    """A running math.fsum: non-overlapping partial sums, a handful of them (Shewchuk, Discrete Comput. Geom. 1997)."""

    def __init__(self) -> None:
        self._partials: list[float] = []

    def add(self, x: float) -> None:
        """Add a finite float exactly."""
        kept = 0
        for y in self._partials:
            if abs(x) < abs(y):
                x, y = y, x
            high = x + y
            low = y - (high - x)
            if low:
                self._partials[kept] = low
                kept += 1
            x = high
        self._partials[kept:] = [x]

    @property
    def value(self) -> float:
        """The exact sum, rounded once."""
        return math.fsum(self._partials)
