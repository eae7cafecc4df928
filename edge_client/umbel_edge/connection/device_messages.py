"""The messages that a device sends, signed, each with its sequence, time and expiry."""

from collections.abc import Callable, Sequence
from functools import cached_property

from joserfc.jwk import ECKey

from umbel import __version__, messages, sealing, signing
from umbel.enrolment import CLOCK_TOLERANCE
from umbel.litert import runtime_name
from umbel.messages import STATUS_SECONDS, Ack, AckState, CommandHead, Outcome, Result, Status
from umbel.sequence import Ascending
from umbel_edge.config import AgentConfig
from umbel_edge.connection.server_time import ServerTime
from umbel_edge.device.inbox import Answer
from umbel_edge.device.state import AgentState


class DeviceMessages:
    """Makes the messages of one device. The answer to a command with an `answer_key` is sealed for the server."""

    def __init__(self, config: AgentConfig, state: AgentState, time: ServerTime, clock: Callable[[], float]) -> None:
        self._config, self._state, self._time, self._clock = config, state, time, clock

    @cached_property
    def _numbers(self) -> Ascending:
        return Ascending(self._time, self._state.inbox.last_answered)

    @cached_property
    def agreement(self) -> ECKey:
        """The key for which the server seals commands to this process."""
        return signing.generate_key()

    def ack(self, command: CommandHead, state: AckState, reason: str) -> Answer:
        """An acknowledgement that the command is in `state`."""
        number, of = self._numbers.next(), (command.id, self._config.population, self._config.device)
        ack = Ack(*of, state, self._clock(), reason, sequence=number, expires=command.expires)
        return Answer("ack", self._sealed(messages.encode(ack, self._state.key), command), number)

    def result(self, command: CommandHead, outcome: Outcome) -> Answer:
        """The outcome of a command."""
        number, of = self._numbers.next(), (command.id, self._config.population, self._config.device)
        result = Result(*of, self._clock(), outcome, sequence=number, expires=command.expires)
        return Answer("result", self._sealed(messages.encode(result, self._state.key), command), number)

    def complaint(self, id: str, reason: str) -> Answer:
        """A rejection of a command that could not be read but for its id."""
        number, of = self._numbers.next(), (id, self._config.population, self._config.device)
        until = self._time() + CLOCK_TOLERANCE
        ack = Ack(*of, "rejected", self._clock(), reason, sequence=number, expires=until)
        return Answer("ack", messages.encode(ack, self._state.key), number)

    def status(
        self,
        epoch: int,
        online: bool,
        examples: int,
        rss_mb: float,
        installed: str,
        reasons: Sequence[str],
        answers: str = "",
    ) -> bytes:
        """The device's status; `answers` is the id of the Hello that asked for it."""
        status = Status(
            self._config.population,
            self._config.device,
            epoch,
            online,
            kind=self._config.kind,
            trainer=self._config.trainer,
            agent=__version__,
            runtime=runtime_name(),
            examples=examples,
            rss_mb=rss_mb,
            installed=installed,
            labels=self._config.labels,
            reasons=list(reasons),
            at=self._clock(),
            expires=self._time() + STATUS_SECONDS if online else 0.0,
            skew=round(self._time.skew, 3),
            agreement=signing.public_key(self.agreement),
            sequence=self._numbers.next(),
            answers=answers,
        )
        return messages.encode(status, self._state.key)

    def _sealed(self, token: bytes, command: CommandHead) -> bytes:
        return token if command.answer_key is None else sealing.seal(token, signing.import_public(command.answer_key))
