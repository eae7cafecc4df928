"""The skew of a device's clock, which is the seconds by which it is ahead of the server's: tolerance and wording."""

from umbel.enrolment import CLOCK_TOLERANCE


def is_wrong(skew: float) -> bool:
    """Whether the skew is larger than the tolerance."""
    return abs(skew) > CLOCK_TOLERANCE


def sentence(skew: float) -> str:
    """The skew in words that complete the sentence "the clock is ..."."""
    way = "ahead of" if skew > 0 else "behind"
    tolerated = f" ({CLOCK_TOLERANCE:.0f} s are tolerated); set it" if is_wrong(skew) else ""
    return f"{abs(skew):.0f} s {way} the server's{tolerated}"
