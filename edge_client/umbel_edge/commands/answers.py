"""Answers to commands: signed, remembered, and published."""

import logging
import sqlite3
import time
from collections.abc import Callable

from umbel.messages import AckState, CommandHead, Outcome
from umbel_edge.connection.broker_link import BrokerLink
from umbel_edge.connection.device_messages import DeviceMessages
from umbel_edge.device.full_storage import is_full
from umbel_edge.device.inbox import Answer
from umbel_edge.device.state import AgentState

log = logging.getLogger("umbel.agent")

COMPLAINT_SECONDS = 1.0
"""At most one complaint is made in this time, so that nobody can make the device talk."""


class Answers:
    """Answers commands; a final answer is in the state's inbox before it is published. For any thread."""

    def __init__(self, state: AgentState, messages: DeviceMessages, link: BrokerLink) -> None:
        self._state, self._messages, self._link = state, messages, link
        self._last_complaint = float("-inf")

    def accept(self, command: CommandHead) -> None:
        """Say that the command is begun; not a final answer."""
        self.publish(self._messages.ack(command, "accepted", ""))

    def end(self, command: CommandHead, state: AckState, reason: str = "") -> None:
        """Answer finally that the command ended in `state`."""
        if reason:
            log.warning("command %s %s: %s", command.id, state, reason)
        answer = self._messages.ack(command, state, reason)
        self._remember(command.id, answer)
        self.publish(answer)

    def give(self, command: CommandHead, outcome: Outcome, is_round: bool) -> None:
        """Answer finally with the command's outcome; `is_round` counts it among the device's rounds."""
        answer = self._messages.result(command, outcome)
        self._remember(command.id, answer, is_round)
        self.publish(answer)

    def end_unremembered(self, command: CommandHead, state: AckState, reason: str) -> None:
        """Answer, without room to remember it: a repeat is answered anew."""
        self.publish(self._messages.ack(command, state, reason))

    def complain(self, reason: str, make: Callable[[], Answer]) -> None:
        """Publish why a message that the server signed cannot be taken in; only the answer's sequence is remembered."""
        log.warning("refused a message: %s", reason)
        now = time.monotonic()
        if now - self._last_complaint < COMPLAINT_SECONDS:
            return
        self._last_complaint = now
        answer = make()
        self._state.inbox.note_answered(answer.sequence)
        self.publish(answer)

    def publish(self, answer: Answer) -> None:
        """Publish an answer, unless the link is down."""
        self._link.publish(answer.channel, answer.token)

    def _remember(self, command: str, answer: Answer, is_round: bool = False) -> None:
        try:
            with self._state.change():
                if is_round:
                    self._state.count_round()
                self._state.inbox.answer(command, answer)
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            log.warning("the answer to command %s cannot be remembered: the storage is full", command)
