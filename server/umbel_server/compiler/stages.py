"""The stages of a compilation, and the share of its time that each takes, for a progress bar."""

from collections.abc import Iterator
from dataclasses import dataclass

COMPARE = "comparing ten steps with Keras"
_SHARES = {
    "building the Keras model": 0.03,
    "tracing the train step": 0.08,
    "converting the train step to LiteRT": 0.46,
    "converting the model for inference": 0.08,
    "converting the model for inference, int8": 0.05,
    COMPARE: 0.28,
    "writing the plan": 0.02,
}
"""The stages in their order, and the share of the time that each takes for large models."""


@dataclass(frozen=True)
class Stage:
    """Stage `number` of `count`, with a `text` for people.

    It usually takes from `begins` to `ends` of the whole time, from 0 to 1: the shares are those of large models.
    """

    text: str
    number: int
    count: int
    begins: float
    ends: float


def stages(check: bool) -> Iterator[Stage]:
    """The stages of a compilation in their order; the comparison with Keras is one of them only with `check`."""
    shares = {text: share for text, share in _SHARES.items() if check or text != COMPARE}
    total, begins = sum(shares.values()), 0.0
    for number, (text, share) in enumerate(shares.items(), start=1):
        yield Stage(text, number, len(shares), begins, begins + share / total)
        begins += share / total
