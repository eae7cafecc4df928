"""Waiting before a failed attempt is made again."""

import random

from umbel.errors import UmbelError

_DOUBLINGS = 62
"""After so many doublings every pause has reached its bound; more would overflow a float."""


class Stopped(UmbelError):
    """The agent was asked to stop."""


def back_off(tried: int, first: float, last: float, source: random.Random) -> float:
    """Seconds to wait after `tried` failed attempts: `first`, doubled each time up to `last`, then up to half more or less.

    The random part spreads the devices, which else would all come back at once.
    """
    return min(last, first * 2.0 ** min(tried, _DOUBLINGS)) * source.uniform(0.5, 1.5)
