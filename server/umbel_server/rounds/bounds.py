"""The bounds of the numbers in a run's settings and in its round policy.

No real run exceeds them, and no computation overflows within them.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

_COUNT, _SECONDS, _NORM = 10**9, 365 * 86_400, 1e38


class Bounds(NamedTuple):
    """The least and the most that a number may be; with `above` it must exceed the least."""

    least: float
    most: float
    above: bool = False


SETTINGS: Mapping[str, Bounds] = MappingProxyType(
    {
        "rounds": Bounds(1, _COUNT),
        "epochs": Bounds(1, _COUNT),
        "max_steps": Bounds(0, _COUNT),
        "learning_rate": Bounds(0, 10**6),
        "seed": Bounds(0, 9 * 10**15),  # the round's number is added, and float64 holds the sum exactly
        "budget_hours": Bounds(0, 10**6),
        "budget_bytes": Bounds(0, 10**18),
    }
)
"""The settings of a run."""

POLICY: Mapping[str, Bounds] = MappingProxyType(
    {
        "target": Bounds(0, _COUNT),
        "fraction": Bounds(0, 1, above=True),
        "over_selection": Bounds(1, 100),
        "quorum": Bounds(1, _COUNT),
        "deadline": Bounds(0, _SECONDS, above=True),
        "attempts": Bounds(1, _COUNT),
        "backoff": Bounds(0, _SECONDS),
        "minimum_gap": Bounds(0, _SECONDS),
        "staleness_exponent": Bounds(0, 10),
        "max_staleness": Bounds(0, 1000),  # a late update's assignment closes that many deadlines later: still a date
        "buffer": Bounds(1, _COUNT),
        "concurrency": Bounds(1, _COUNT),
        "evaluate": Bounds(0, _COUNT),
        "max_norm": Bounds(0, _NORM),
        "norm_multiple": Bounds(0, _COUNT),
        "max_rejections": Bounds(0, _COUNT),
        "max_loss_growth": Bounds(0, _NORM),
    }
)
"""The fields of a round policy."""


class OutOfBounds(ValueError):
    """A number is out of its bounds: `what` it is, and the `rest` of a sentence that says what was expected and what came."""

    def __init__(self, what: str, rest: str) -> None:
        super().__init__(f"{what} {rest}")
        self.what, self.rest = what, rest

    def named(self, what: str) -> str:
        """The sentence with another name for the number."""
        return f"{what} {self.rest}"


def check(what: str, value: float, bounds: Bounds) -> None:
    """Raise OutOfBounds when a value is out of its bounds, or is not a number."""
    least, most, above = bounds
    if not least <= value or (above and value == least):
        raise OutOfBounds(what, f"should be {'over' if above else 'at least'} {_text(least)}, got {_text(value)}")
    if value > most:
        raise OutOfBounds(what, f"should be at most {_text(most)}, got {_text(value)}")


def _text(value: float) -> str:
    if isinstance(value, int) and abs(value) >= 10**19:  # Python itself does not write integers of thousands of digits
        return f"{'-' if value < 0 else ''}10^{math.log10(abs(value)):.0f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
