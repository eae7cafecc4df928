"""The states of an assignment, and which may follow which."""

from typing import Literal

from umbel.errors import UmbelError

LiveState = Literal["offered", "accepted", "uploaded"]
FinalState = Literal["folded", "declined", "expired", "failed", "rejected", "cancelled"]
AssignmentState = LiveState | FinalState

WITH_DEVICE = ("offered", "accepted")
"""The device has yet to answer."""
LIVE = ("offered", "accepted", "uploaded")
FINAL = ("folded", "declined", "expired", "failed", "rejected", "cancelled")

_NEXT: dict[str, tuple[str, ...]] = {
    # An acceptance may be lost on the way, so an offered assignment can end in every way an accepted one can.
    "offered": ("accepted", "uploaded", *FINAL),
    "accepted": ("uploaded", *FINAL),
    # An update may become durable in the instant before its round's deadline is acted on: it has expired all the same.
    "uploaded": ("folded", "expired", "rejected", "cancelled"),
}


def may_follow(state: str, next: str) -> bool:
    """Whether an assignment in `state` may go on to `next`; nothing follows a final state."""
    return next in _NEXT.get(state, ())


def before(next: str) -> tuple[str, ...]:
    """The states that an assignment may go on to `next` from."""
    return tuple(state for state in LIVE if may_follow(state, next))


class FinalStateError(UmbelError):
    """A transition that the state machine does not have."""
