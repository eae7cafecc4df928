"""The events that the round engine takes, and the effects that it asks for. Times are Unix or virtual seconds."""

from dataclasses import dataclass
from typing import Literal

from umbel_server.rounds.assignments import FinalState
from umbel_server.rounds.selection import Candidate


@dataclass(frozen=True)
class Event:
    """Something happened at `now`; by itself: only time passed."""

    now: float


class Tick(Event):
    """Time passed."""


@dataclass(frozen=True)
class Candidates(Event):
    """The answer to Look: the devices of the population."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Accepted(Event):
    """A device accepted its assignment."""

    id: str


@dataclass(frozen=True)
class Uploaded(Event):
    """An update is stored; the device claims to have trained on `examples`."""

    id: str
    examples: int


@dataclass(frozen=True)
class Ended(Event):
    """A device ended its assignment without an update: declined, failed, rejected, cancelled, or the command expired.

    `reason` says who and why, for people.
    """

    id: str
    reason: str = ""


@dataclass(frozen=True)
class Folded(Event):
    """An update is in the sum."""

    id: str


@dataclass(frozen=True)
class Refused(Event):
    """An update was vetted and is not in the sum."""

    id: str
    reason: str


@dataclass(frozen=True)
class Committed(Event):
    """The checkpoint is durable. `done`: why the run has reached its end, or nothing."""

    done: str = ""


@dataclass(frozen=True)
class Unable(Event):
    """The strategy cannot aggregate what was folded."""

    reason: str


@dataclass(frozen=True)
class Order(Event):
    """An administrator pauses or stops the run."""

    what: Literal["pause", "stop"]


@dataclass(frozen=True)
class Offer:
    """A new assignment: `device` trains from checkpoint `base` until `closes`."""

    id: str
    device: str
    base: int
    closes: float


@dataclass(frozen=True)
class Look:
    """Send Candidates now, and again at every change of the devices while the phase is `selecting`."""


@dataclass(frozen=True)
class Open:
    """Begin an attempt at round `number`, and offer its assignments, durably and in one transaction.

    One that a pause has interrupted is begun again: it is noted with the new times.
    """

    number: int
    attempt: int
    opened: float
    closes: float
    wanted: int
    offers: tuple[Offer, ...]


@dataclass(frozen=True)
class Assign:
    """Offer more assignments in the round that is open."""

    offers: tuple[Offer, ...]


@dataclass(frozen=True)
class Fold:
    """Vet an update and add it to the sum with `weight`; answered by Folded or Refused."""

    id: str
    weight: float


@dataclass(frozen=True)
class Finish:
    """Give an assignment its final state; with `tell`, its device is told to stop."""

    id: str
    state: FinalState
    reason: str
    tell: bool


@dataclass(frozen=True)
class Commit:
    """Make checkpoint `number` of the sum, durably, in one transaction with its contributors' final state."""

    number: int
    attempt: int
    contributors: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Abandon:
    """Note that an attempt ended without a checkpoint, and empty the sum."""

    number: int
    attempt: int
    reason: str


@dataclass(frozen=True)
class Evaluate:
    """Let some devices evaluate checkpoint `number`."""

    number: int


@dataclass(frozen=True)
class End:
    """The run ends, or pauses until an administrator resumes it."""

    state: Literal["finished", "paused", "stopped"]
    reason: str


Effect = Look | Open | Assign | Fold | Finish | Commit | Abandon | Evaluate | End
