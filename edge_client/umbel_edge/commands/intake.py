"""Taking in commands: each is verified, checked for being this device's, current and new, and then handled or queued."""

import logging
import sqlite3
from contextlib import suppress

from umbel import messages, sealing
from umbel.errors import MessageError, SignatureError
from umbel.messages import Command, CommandHead, UnknownKind
from umbel.signing import UnknownKey
from umbel_edge.commands.answers import Answers
from umbel_edge.commands.execution import Decode, Job, Jobs
from umbel_edge.commands.handlers.context import HandlerContext
from umbel_edge.commands.handlers.table import Handlers, Immediate, Queued, Unrecorded
from umbel_edge.connection.device_messages import DeviceMessages
from umbel_edge.connection.server_time import ServerTime
from umbel_edge.device.full_storage import FULL, is_full
from umbel_edge.device.inbox import Begun
from umbel_edge.waiting import Stopped

log = logging.getLogger("umbel.agent")


class Intake:
    """Takes in what comes on the device's command topic; called in the link's thread alone."""

    def __init__(
        self,
        context: HandlerContext,
        handlers: Handlers,
        answers: Answers,
        own_messages: DeviceMessages,
        time: ServerTime,
        jobs: Jobs,
        decode: Decode = messages.decode_command,
    ) -> None:
        self._context, self._handlers, self._answers, self._messages = context, handlers, answers, own_messages
        self._time, self._jobs, self._decode = time, jobs, decode

    def receive(self, token: bytes) -> None:
        """Take in one message, whoever sent it."""
        with suppress(Stopped):  # before it was answered: the server sends it again
            self._receive(token)

    def _receive(self, token: bytes) -> None:
        unknown = ""
        try:
            if sealing.is_sealed(token):
                token = sealing.unseal(token, self._messages.agreement)
            command: CommandHead = self._decode(token, self._context.keys.accepted)
        except UnknownKind as error:
            command, unknown = error.head, str(error)
        except SignatureError as error:
            # Whoever made it chose the id that it names: an answer would be our word on a command that may still come.
            log.warning("dropped a message without a valid signature of the server: %s", error)
            if isinstance(error, UnknownKey):
                self._context.keys.missed(error.key)
            return
        except MessageError as error:
            wrong = str(error)
            self._answers.complain(wrong, lambda: self._messages.complaint(messages.claimed_id(token), wrong))
            return
        self._time.at_least(command.issued)
        ours = self._context.config.population, self._context.config.device
        if (command.population, command.device) != ours:
            wrong = f"the command is for {command.population}/{command.device}, not for this device"
            self._answers.complain(wrong, lambda: self._messages.ack(command, "rejected", wrong))
            return
        try:
            self._take_in(command, unknown, token)
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            # Nothing can be remembered, so nothing may be begun.
            self._answers.end_unremembered(command, "failed", FULL)

    def _take_in(self, command: CommandHead, unknown: str, token: bytes) -> None:
        inbox = self._context.state.inbox
        handler = self._handlers[type(command.body)] if isinstance(command, Command) else None
        if isinstance(handler, Unrecorded) and command.expires > self._time():
            handler.handle(self._context, command.id, command.body)
        elif (answer := inbox.answer_of(command.id)) is not None:
            self._answers.publish(answer)
        elif (late := self._time() - command.expires) >= 0:
            gone = f"the command expired {late:.0f} s before it came"
            self._answers.complain(gone, lambda: self._messages.ack(command, "expired", gone))
        elif not inbox.remembers(command.sequence, command.expires):
            lost = "the command is older than this device's memory and may have been executed; send a new one"
            self._answers.complain(lost, lambda: self._messages.ack(command, "rejected", lost))
        elif inbox.begin(command.id, command.expires, token) is Begun.NEW:
            self._begin(command, unknown)

    def _begin(self, command: CommandHead, unknown: str) -> None:
        """Answer a new command at once, or queue it."""
        if not isinstance(command, Command):
            self._answers.end(command, "rejected", unknown)
            return
        handler = self._handlers[type(command.body)]
        if isinstance(handler, Immediate):
            handler.handle(self._context, command.body, lambda: self._answers.end(command, "done"))
        elif wrong := self._time.wrong:
            self._answers.end(command, "declined", wrong)
        elif isinstance(handler, Queued):
            self._jobs.put(Job(command, handler))
