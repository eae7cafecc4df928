"""How long to wait before something that failed is tried again."""

import random

from umbel.errors import UmbelError

_DOUBLINGS = 62
"""After so many no pause is below its bound, and more would soon be no number any more."""


class Stopped(UmbelError):
    """The agent was asked to stop, or to leave what it is doing."""


def back_off(tried: int, first: float, last: float, source: random.Random) -> float:
    """Seconds to wait when it was `tried` so often before: `first`, doubled each time up to `last`, and up to half more or
    less by chance, so that devices do not all come back at once."""
    return min(last, first * 2.0 ** min(tried, _DOUBLINGS)) * source.uniform(0.5, 1.5)
