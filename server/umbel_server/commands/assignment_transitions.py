"""Assignments moved on in the database by what was heard of their devices, within the caller's transaction.

A round has several of these for each of its devices, so they are plain statements, made once: no object is loaded, changed
and compared.
"""

from typing import Any, NamedTuple

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from umbel.messages import MOST_COUNT, Evaluated, Outcome, Trained
from umbel_server.commands.quarantine import count_rejection
from umbel_server.rounds.assignments import FINAL, LIVE, before
from umbel_server.storage.database import ASSIGNMENTS


class Moved(NamedTuple):
    """An assignment as it is after a transition."""

    id: str
    run: str
    population: str
    device: str
    state: str
    reason: str
    examples: int


_OF_COMMAND = ASSIGNMENTS.c.command == bindparam("of")
_MOVE = {
    state: update(ASSIGNMENTS)
    .where(_OF_COMMAND, ASSIGNMENTS.c.state.in_(before(state)))
    .returning(*(ASSIGNMENTS.c[field] for field in Moved._fields))
    for state in (*LIVE, *FINAL)
    if before(state)
}
_WORK = select(ASSIGNMENTS.c.id, ASSIGNMENTS.c.kind, ASSIGNMENTS.c.round).where(_OF_COMMAND)


def move_assignment(session: Session, command: str, state: str, reason: str, at: float, **more: Any) -> Moved | None:
    """Move the assignment of a command, if it has one that may go there, to `state`, and set what `more` says."""
    moved = session.execute(_MOVE[state], {"of": command, "state": state, "reason": reason, "updated": at, **more})
    row = moved.one_or_none()
    return Moved(*row) if row is not None else None


def reject(session: Session, command: str, reason: str, at: float) -> Moved | None:
    """Reject what came for a command's assignment; a device that refuses work itself is not counted like that."""
    if (moved := move_assignment(session, command, "rejected", reason, at)) is not None:
        count_rejection(session, moved.run, moved.population, moved.device, reason)
    return moved


def take(session: Session, command: str, outcome: Outcome, at: float) -> Moved | None:
    """Note what came back for a command's assignment, unless that has its final state.

    An update waits to be folded; an evaluation is final, as nothing is made of it but means. Work that belongs to another
    assignment is rejected.
    """
    work = session.execute(_WORK, {"of": command}).one_or_none()
    if work is None:
        return None
    expected = Trained if work.kind == "train" else Evaluated
    if not isinstance(outcome, Trained | Evaluated) or not isinstance(outcome, expected):
        wrong = f"the answer should be {expected.__name__}, it is {type(outcome).__name__}"
        return reject(session, command, wrong, at)
    if outcome.assignment != work.id:
        wrong = f"the answer should be for {work.kind} {work.id}, it is for {outcome.assignment[:32]!r}"
        return reject(session, command, wrong, at)
    if not 0 <= outcome.examples <= MOST_COUNT:
        wrong = f"0 to {MOST_COUNT} examples were expected, it claims {str(outcome.examples)[:12]}"
        return reject(session, command, wrong, at)
    more = {"examples": outcome.examples, "metrics": outcome.metrics, "seconds": outcome.seconds}
    if isinstance(outcome, Trained):
        came = {"update": outcome.update.sha256, "bytes_up": outcome.update.size}
        return move_assignment(session, command, "uploaded", "", at, **more, **came)
    weight = {"folded_into": work.round, "weight": float(outcome.examples)}
    return move_assignment(session, command, "folded", "", at, **more, **weight)
