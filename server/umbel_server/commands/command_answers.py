"""Answers to commands: acknowledgements and results become transitions, each in one transaction with its assignment."""

from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from umbel.errors import UmbelError
from umbel.messages import Ack, Result, blobs_of
from umbel_server import moments
from umbel_server.commands import kinds
from umbel_server.commands.assignment_transitions import Moved, move_assignment, reject, take
from umbel_server.commands.expected_outcome import check_outcome
from umbel_server.commands.kinds import ASSIGNED, CommandKind
from umbel_server.commands.listeners import Listeners, Transition
from umbel_server.commands.outbox import Outbox
from umbel_server.commands.received_blobs import ReceivedBlobs
from umbel_server.storage.database import Database


class CommandAnswers:
    """Takes in what devices answer, and expires commands without an answer; listeners are told after the transaction."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        received_blobs: ReceivedBlobs,
        listeners: Listeners,
        clock: Callable[[], float],
    ) -> None:
        self._database, self._outbox, self._clock = database, outbox, clock
        self._received_blobs, self._listeners = received_blobs, listeners

    def acknowledge(self, ack: Ack) -> None:
        """Note an acknowledgement."""
        now = self._clock()
        with self._database.transaction() as session:
            if (kind := self._outbox.acknowledge(session, ack)) is None:
                return
            state, reason = str(ack.state), ack.reason
            if state == "done":
                state, reason = "failed", "it was acknowledged as done, and nothing came of it"
            moved = self._move(session, ack.command, kind, state, reason, now)
        if ack.state == "accepted":
            moments.reached("accepted")
        self._after(_transition(ack, kind, now, moved))

    def complete(self, result: Result) -> None:
        """Note an outcome, or reject it with the reason."""
        with self._database.transaction() as session:
            name = self._outbox.open(session, result.command, result.population, result.device)
        if name is None:
            return  # nothing is stored for a command that is over, or another's
        try:
            kind = kinds.named(name)
            check_outcome(kind, result.outcome)
            self._take_blobs(kind, result)
        except UmbelError as error:
            self._reject(result, str(error))
            return
        now = self._clock()
        with self._database.transaction() as session:
            completed = self._outbox.complete(session, result) is not None
            moved = take(session, result.command, result.outcome, now) if completed and kind.has_assignment else None
            if completed and kind.upload is not None and kind.upload.is_published:
                self._received_blobs.ownership.claim(session, result.population, *blobs_of(result.outcome))
        self._received_blobs.stop_counting(result.command)
        if not completed:
            self._received_blobs.remove_soon([result.command])
            return
        of = result.command, result.population, result.device
        self._after(Transition(*of, name, "done", "", now, result.outcome, moved))

    def _reject(self, result: Result, reason: str) -> None:
        of, now = (result.command, result.population, result.device), self._clock()
        ack = Ack(*of, "rejected", result.at, reason, sequence=result.sequence)
        with self._database.transaction() as session:
            if (kind := self._outbox.acknowledge(session, ack)) is None:
                return
            moved = reject(session, ack.command, reason, now) if kind in ASSIGNED else None
        self._after(_transition(ack, kind, now, moved))

    def _take_blobs(self, kind: CommandKind[Any], result: Result) -> None:
        """Store the blobs that travelled along and check those that were uploaded; raises UmbelError."""
        of = result.population, result.command
        for blob in blobs_of(result.outcome):
            data = blob.content()
            if data is not None:
                self._received_blobs.of(result.command).put(data)
            elif self._received_blobs.size(*of, blob.sha256) != blob.size:
                raise UmbelError(f"the upload {blob.sha256[:12]} should have {blob.size} bytes")
            if kind.upload is not None and kind.upload.is_published:
                self._received_blobs.publish(*of, blob.sha256)

    def expire(self) -> None:
        """End the commands whose time is over."""
        with self._database.transaction() as session:
            transitions = []
            for command in self._outbox.expire(session):
                of = command.id, command.population, command.device, command.kind
                became = command.state, command.reason, command.updated
                moved = self._move(session, command.id, command.kind, *became)
                transitions.append(Transition(*of, *became, assignment=moved))
        for transition in transitions:
            self._listeners.tell(transition)
        self._received_blobs.remove_soon([transition.command for transition in transitions])

    def _move(self, session: Session, command: str, kind: str, state: str, reason: str, at: float) -> Moved | None:
        return move_assignment(session, command, state, reason, at) if kind in ASSIGNED else None

    def _after(self, transition: Transition) -> None:
        self._listeners.tell(transition)
        self._received_blobs.remove_soon([transition.command])


def _transition(ack: Ack, kind: str, at: float, moved: Moved | None) -> Transition:
    of = ack.command, ack.population, ack.device
    return Transition(*of, kind, ack.state, ack.reason, at, assignment=moved)
