"""How far a device's clock is ahead of the server's, in seconds: what is tolerated, and how to say it."""

from umbel.enrolment import CLOCK_TOLERANCE


def is_wrong(skew: float) -> bool:
    """Whether a clock is further off than is tolerated."""
    return abs(skew) > CLOCK_TOLERANCE


def sentence(skew: float) -> str:
    """How far a clock is off, in words that follow "the clock is"."""
    way = "ahead of" if skew > 0 else "behind"
    tolerated = f" ({CLOCK_TOLERANCE:.0f} s are tolerated); set it" if is_wrong(skew) else ""
    return f"{abs(skew):.0f} s {way} the server's{tolerated}"
