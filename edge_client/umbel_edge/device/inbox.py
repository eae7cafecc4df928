"""The commands that the device has received, and its answers. A repeated command is answered again, not executed again."""

from enum import Enum
from typing import Literal

import msgspec

from umbel.enrolment import CLOCK_TOLERANCE
from umbel_edge.device.database import StateDatabase


class Answer(msgspec.Struct, frozen=True):
    """The answer to a command: its channel, the signed message, and its sequence; 0 for a remembered answer."""

    channel: Literal["ack", "result"]
    token: bytes
    sequence: int = 0


class Begun(Enum):
    """The inbox's record of a command at the moment of `Inbox.begin`."""

    NEW = "new"
    UNANSWERED = "unanswered"
    ANSWERED = "answered"


class Inbox:
    """Commands by id, from the time they are begun until they have expired."""

    def __init__(self, database: StateDatabase) -> None:
        self._database = database

    def begin(self, command: str, expires: float, signed: bytes = b"") -> Begun:
        """Take a command in, unless it was begun before.

        `signed` is the whole message, kept until the command is answered.
        """
        with self._database.change():
            row = self._database.row("SELECT token FROM inbox WHERE id = ?", command)
            if row is not None:
                return Begun.ANSWERED if row[0] else Begun.UNANSWERED
            self._database.write("INSERT INTO inbox (id, expires, command) VALUES (?, ?, ?)", command, expires, signed)
        return Begun.NEW

    def answer_of(self, command: str) -> Answer | None:
        """The remembered answer to a command, or None when it was not answered, or is not known."""
        row = self._database.row("SELECT channel, token FROM inbox WHERE id = ?", command)
        return Answer(row[0], row[1]) if row is not None and row[1] else None

    def answer(self, command: str, answer: Answer) -> None:
        """Remember the answer to a command."""
        with self._database.change():
            self._database.write(
                "UPDATE inbox SET channel = ?, token = ?, command = x'' WHERE id = ?",
                answer.channel,
                answer.token,
                command,
            )
            self.note_answered(answer.sequence)

    def unanswered(self) -> dict[str, bytes]:
        """The signed commands that were begun and not answered, by id, in the order in which they came."""
        rows = self._database.rows("SELECT id, command FROM inbox WHERE token = x'' ORDER BY rowid")
        return {str(id): bytes(command) for id, command in rows}

    def forget(self, command: str) -> None:
        """Count a command as never taken in: when it comes again, it is new."""
        self._database.write("DELETE FROM inbox WHERE id = ?", command)

    @property
    def last_answered(self) -> int:
        """The highest sequence among this device's final answers, as far as it remembers."""
        return int(self._database.fact("answered", "0"))

    def note_answered(self, sequence: int) -> None:
        """Remember that a final answer of this sequence was given."""
        with self._database.change():
            if sequence > self.last_answered:
                self._database.remember("answered", str(sequence))

    def begin_memory(self, sequence: int) -> None:
        """Declare that the inbox has no memory of commands up to this sequence, as in a new or restored state folder.

        `remembers` is False for them from now on, so they are rejected: the device may have executed them before.
        """
        self._database.remember("memory", str(sequence))

    def remembers(self, sequence: int, expires: float) -> bool:
        """Whether the inbox would have a record of this command if it had been received before.

        When False, a repeat could not be recognised, so the command must not be executed.
        """
        forgotten = float(self._database.fact("forgotten", "0"))
        return sequence > int(self._database.fact("memory", "0")) and expires > forgotten

    def forget_old(self, now: float) -> None:
        """Forget the answered commands that expired more than CLOCK_TOLERANCE before `now` (the server's time).

        `remembers` is False for commands as old as these from now on, also after a smaller `now`.
        """
        forgotten = now - CLOCK_TOLERANCE
        with self._database.change():
            if forgotten > float(self._database.fact("forgotten", "0")):
                self._database.remember("forgotten", str(forgotten))
            self._database.write("DELETE FROM inbox WHERE expires < ? AND token != x''", forgotten)
