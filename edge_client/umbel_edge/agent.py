"""The agent: commands come in over MQTT, a worker executes them, answers go out."""

import logging
import queue
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from umbel import messages, sealing, topics
from umbel.enrolment import CONNECTION_PATH
from umbel.errors import MessageError, SignatureError, TensorError, UmbelError
from umbel.messages import (
    STATUS_SECONDS,
    AckState,
    Command,
    CommandHead,
    Outcome,
    UnknownKind,
)
from umbel.mqtt import Link, Will
from umbel.signing import UnknownKey
from umbel_edge.commands.handlers.context import HandlerContext
from umbel_edge.commands.handlers.table import HANDLERS, Handlers, Immediate, Queued
from umbel_edge.commands.leftovers import clean_leftovers
from umbel_edge.commands.outgoing import Outgoing
from umbel_edge.commands.plan_cache import PlanCache
from umbel_edge.commands.statements import Statements
from umbel_edge.config import AgentConfig
from umbel_edge.connection.certificate import LOOK_SECONDS as CERTIFICATE_SECONDS
from umbel_edge.connection.certificate import Certificate
from umbel_edge.connection.enrolment import ask, connect
from umbel_edge.connection.http import ServerHttp, drain
from umbel_edge.connection.resumable_uploads import Uploads
from umbel_edge.connection.server_keys import ServerKeys
from umbel_edge.connection.server_time import DAY, LOOK_SECONDS, ServerTime
from umbel_edge.connection.standing import Standing
from umbel_edge.device.installed_models import Models
from umbel_edge.device.readings import Conditions, resident_mb
from umbel_edge.device.state import AgentState, Answer
from umbel_edge.device.storage import FULL, is_full
from umbel_edge.device.watch import Watch
from umbel_edge.identity.keys import store_of
from umbel_edge.training.example_cache import ExampleCache
from umbel_edge.training.example_count import ExampleCount
from umbel_edge.training.litert_trainer import LiteRTTrainer
from umbel_edge.training.trainers import Cancelled, Trainer
from umbel_edge.waiting import Stopped

log = logging.getLogger("umbel.agent")

COMPLAINT_SECONDS = 1.0
"""At most one answer to a message that cannot be taken in this time, so that nobody can make the device talk."""


@dataclass(frozen=True)
class Seen:
    """What a status says of the device now; it is said again when other rules are broken, not at every new figure."""

    broken: tuple[str, ...]
    examples: int
    reasons: list[str] = field(compare=False)
    renewal: int = 0


@dataclass(frozen=True)
class Job:
    """A command that waits its turn, and how it is handled."""

    command: Command
    handler: Queued[Any]


class Agent:
    """One device: `run` until `stop`. Raises UmbelError when it cannot start.

    `state` is what the device remembers. `clock` is the device's own clock, in Unix seconds.
    """

    def __init__(
        self, config: AgentConfig, clock: Callable[[], float] = time.time, handlers: Handlers = HANDLERS
    ) -> None:
        self._config, self._clock, self._handlers = config, clock, handlers
        self._stopping = threading.Event()
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self._last_complaint = float("-inf")
        self._epoch = 0
        self._saying = threading.Lock()
        self._broken: tuple[str, ...] = ()
        self.state = AgentState(config.state, store_of(config.key, config.state, self._stopping))
        self._time = ServerTime(clock)
        self._say = Statements(config, self.state, self._time, clock)
        self._count_examples = ExampleCount(config.examples)
        self._conditions = Conditions(config.state, self._count_examples, config.readings, now=clock)
        self._watch = Watch(self._look, self._say_hello, self._stopping)
        self._standing = Standing(self._stopping, lambda: self._queue.put(None))

    def run(self) -> None:
        """Enrol, connect, and work until `stop` is called; raises UmbelError when the device is revoked."""
        try:
            trainer = self._make_trainer()
            self._http = ServerHttp(self._config, self.state.key, self._stopping, self._clock)
            enrolment = connect(self._http, self._config, self.state, self._standing)
            self._time.hear(enrolment.at)
            self.state.forget_old(self._time())
            self._http.on_barred = self._standing.refused
            host, port = enrolment.broker_host, enrolment.broker_port
            if self._config.mqtt is not None:
                host, port = self._config.mqtt.host, self._config.mqtt.port
            self._keys = ServerKeys(self.state, self._http, self._time)
            self._models = Models(self._config.state / "models", self._config.threads, self._config.population)
            self._context = self._make_context(trainer)
            self._take_up()
            self._link = Link(
                host,
                port,
                f"umbel-{self._config.population}-{self._config.device}",
                (self._topic("command"),),
                self._received,
                on_up=self._say_hello,
                will=self._will,
                tls=self._tls() if enrolment.broker_tls else None,
            )
            self._link.start()
            self._watch.start()
            self._keys.start()
            Watch(self._day, self._new_day, self._stopping, LOOK_SECONDS, LOOK_SECONDS).start()
            try:
                self._work()
            finally:
                self._stopping.set()
                self._keys.stop()
                self._link.stop(farewell=self._last_word())
        except Stopped:
            log.info("stopped")
        finally:
            self.state.close()

    def _tls(self) -> ssl.SSLContext:
        """How to connect to the broker, with a certificate that is renewed while the agent runs."""
        certificate = Certificate(self.state, self._http, self._clock)
        context = certificate.context()
        Watch(certificate.due, certificate.keep, self._stopping, CERTIFICATE_SECONDS, CERTIFICATE_SECONDS).start()
        return context

    def stop(self) -> None:
        """End `run` soon, from any thread or a signal handler; the work at hand is left within one batch."""
        self._stopping.set()
        self._queue.put(None)

    def _make_trainer(self) -> Trainer:
        if self._config.trainer == "keras" and self._config.task is not None:
            from umbel_edge.training.keras_trainer import KerasTrainer

            return KerasTrainer(self._config.device, self._config.task)
        return LiteRTTrainer(self._config.device, self._config.threads)

    def _make_context(self, trainer: Trainer) -> HandlerContext:
        uploads = Uploads(self._http, self.state)
        return HandlerContext(
            self._config,
            self.state,
            self._http,
            uploads,
            self._keys,
            self._standing,
            Outgoing(self.state, uploads),
            trainer,
            self._models,
            self._conditions,
            PlanCache(self._config.state / "plans", self._http, self._keys),
            ExampleCache(self._config.examples),
            self._count_examples,
            self._why_stop,
            self._time,
        )

    def _take_up(self) -> None:
        """Queue the commands that a process before this one began and did not answer, in their order, if their kind resumes.

        Every other command that was not answered counts as never received: the server sends it again.
        """
        resumed = set()
        for id, token in self.state.unanswered().items():
            try:
                command = messages.decode_command(token, self._keys.known)
            except (SignatureError, MessageError):
                self.state.forget(id)
                continue
            handler = self._handlers[type(command.body)]
            if isinstance(handler, Queued) and handler.resumed and command.expires > self._time():
                log.info("%s %s goes on after a restart", type(command.body).__name__.lower(), id)
                resumed.add(id)
                self._queue.put(Job(command, handler))
            else:
                self.state.forget(id)
        clean_leftovers(self._context, resumed)

    def _look(self) -> Seen:
        broken = self._conditions.violations(self._config.conditions)
        names, reasons = [violation.condition for violation in broken], [violation.phrase for violation in broken]
        if wrong := self._time.wrong:
            if "clock" not in self._broken:
                log.warning("%s; it takes no work until then", wrong)
            names, reasons = [*names, "clock"], [*reasons, wrong]
        self._broken = tuple(names)
        renewal = self._time.since_start(STATUS_SECONDS / 3)
        return Seen(self._broken, self._count_examples(), reasons, renewal)

    def _day(self) -> int:
        return self._time.since_start(DAY)

    def _new_day(self) -> None:
        """Hear the server's time again, as no clock is exact, and forget what is over."""
        if (trust := self.state.pinned()) is not None:
            self._time.hear(ask(self._http, self.state, trust).at)
        self.state.forget_old(self._time())

    def _topic(self, channel: topics.Channel) -> str:
        return topics.topic(self._config.population, self._config.device, channel)

    def _will(self) -> Will | None:
        self._epoch = self.state.count("epoch")
        return self._last_word()

    def _last_word(self) -> Will | None:
        """That this session is over; None when the agent stops while its key is away."""
        try:
            return Will(self._topic("status"), self._status(online=False))
        except Stopped:
            return None

    def _say_hello(self) -> None:
        with self._saying, suppress(Stopped):  # in the order of their numbers, of which the last is retained
            self._link.publish(self._topic("status"), self._status(online=True), retain=True)

    def _status(self, online: bool) -> bytes:
        installed, seen = self._models.installed, self._watch.seen
        release = installed.release if installed is not None else ""
        return self._say.status(self._epoch, online, seen.examples, round(resident_mb(), 1), release, seen.reasons)

    def _received(self, _topic: str, token: bytes) -> None:
        with suppress(Stopped):  # before it was answered: the server sends it again
            self._hear(token)

    def _hear(self, token: bytes) -> None:
        unknown = ""
        try:
            if sealing.is_sealed(token):
                token = sealing.unseal(token, self._say.agreement)
            command: CommandHead = messages.decode_command(token, self._keys.accepted)
        except UnknownKind as error:
            command, unknown = error.head, str(error)
        except SignatureError as error:
            # Whoever made it chose the id that it names: an answer would be our word on a command that may still come.
            log.warning("dropped a message that proves nothing: %s", error)
            if isinstance(error, UnknownKey):
                self._keys.missed(error.key)
            return
        except MessageError as error:
            wrong = str(error)
            self._complain(wrong, lambda: self._say.complaint(messages.claimed_id(token), wrong))
            return
        self._time.at_least(command.issued)
        if (command.population, command.device) != (self._config.population, self._config.device):
            wrong = f"the command is for {command.population}/{command.device}, not for this device"
            self._complain(wrong, lambda: self._say.ack(command, "rejected", wrong))
            return
        try:
            self._take_in(command, unknown, token)
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            # Nothing can be remembered, so nothing may be begun; a repeat is answered anew.
            self._publish(self._say.ack(command, "failed", FULL))

    def _take_in(self, command: CommandHead, unknown: str, token: bytes) -> None:
        if (said := self.state.known(command.id)) is not None:
            self._publish(said)
        elif (late := self._time() - command.expires) >= 0:
            gone = f"the command expired {late:.0f} s before it came"
            self._complain(gone, lambda: self._say.ack(command, "expired", gone))
        elif not self.state.remembers(command.sequence, command.expires):
            lost = "the command is from before this device's memory begins, so it may have been executed; give it again"
            self._complain(lost, lambda: self._say.ack(command, "rejected", lost))
        elif self.state.begin(command.id, command.expires, token) is False:
            self._begin(command, unknown)

    def _begin(self, command: CommandHead, unknown: str) -> None:
        """Answer a new command at once, or queue it."""
        if not isinstance(command, Command):
            self._refuse(command, "rejected", unknown)
            return
        handler = self._handlers[type(command.body)]
        if isinstance(handler, Immediate):
            handler.handle(self._context, command.body, lambda: self._refuse(command, "done", ""))
        elif wrong := self._time.wrong:
            self._refuse(command, "declined", wrong)
        else:
            self._queue.put(Job(command, handler))

    def _complain(self, reason: str, answer: Callable[[], Answer]) -> None:
        """Answer what the server signed and this device cannot take: say why, remember only that something was said."""
        log.warning("refused a message: %s", reason)
        now = time.monotonic()
        if now - self._last_complaint < COMPLAINT_SECONDS:
            return
        self._last_complaint = now
        said = answer()
        self.state.note_answered(said.sequence)
        self._publish(said)

    def _publish(self, answer: Answer) -> None:
        self._link.publish(self._topic(answer.channel), answer.token)

    def _work(self) -> None:
        while not self._stopping.is_set():
            job = self._queue.get()
            if self._standing.reason:
                self._stand_by(job)
                continue
            if job is None:
                continue
            try:
                self._execute(job)
            except Stopped:
                return
            except Exception:
                log.exception("command %s could not be answered", job.command.id)

    def _stand_by(self, job: Job | None) -> None:
        """Give up what came before the device was barred, and wait until the server takes part with it again."""
        while True:
            if job is not None:
                self._give_up(job, "cancelled", self._standing.reason)
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
        self._standing.wait_out(lambda: drain(self._http.request("GET", CONNECTION_PATH)))
        self._say_hello()

    def _execute(self, job: Job) -> None:
        command, handler, kind = job.command, job.handler, type(job.command.body).__name__.lower()
        if command.expires <= self._time():
            self._give_up(job, "expired", "the command expired while it waited for the one before it")
            return
        if handler.admit is not None:
            if broken := handler.admit(self._context, command.id, command.body):
                self._give_up(job, "declined", ", ".join(violation.phrase for violation in broken))
                return
            self._publish(self._say.ack(command, "accepted", ""))
        try:
            outcome = handler.handle(self._context, command.id, command.body)
        except Stopped:
            return
        except Cancelled as error:
            if not self._stopping.is_set():
                self._give_up(job, "cancelled", str(error))
        except TensorError as error:
            self._give_up(job, "rejected", str(error))
        except UmbelError as error:
            self._give_up(job, "failed", str(error))
        except Exception as error:
            if is_full(error):
                self._give_up(job, "failed", FULL)
                return
            log.exception("%s %s failed", kind, command.id)
            self._give_up(job, "failed", f"{type(error).__name__}: {error}; the device's log has the details")
        else:
            self._finish(job, outcome)
            log.info("%s %s done", kind, command.id)

    def _give_up(self, job: Job, state: AckState, reason: str) -> None:
        job.handler.clean(self._context, job.command.id)
        self._refuse(job.command, state, reason)

    def _finish(self, job: Job, outcome: Outcome | None) -> None:
        if outcome is None:
            self._refuse(job.command, "done", "")
            self._say_hello()
        else:
            answer = self._say.result(job.command, outcome)
            self._remember(job.command.id, answer, counts=job.handler.is_round)
            self._publish(answer)
        job.handler.clean(self._context, job.command.id)

    def _refuse(self, command: CommandHead, state: AckState, reason: str) -> None:
        if reason:
            log.warning("command %s %s: %s", command.id, state, reason)
        answer = self._say.ack(command, state, reason)
        self._remember(command.id, answer)
        self._publish(answer)

    def _remember(self, id: str, answer: Answer, counts: bool = False) -> None:
        try:
            with self.state.change():
                if counts:
                    self.state.count_round()
                self.state.answer(id, answer)
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            log.warning("the answer to command %s cannot be remembered: the storage is full", id)

    def _why_stop(self, assignment: str) -> str:
        if self._stopping.is_set():
            return "the agent is stopping"
        if self._standing.reason:
            return self._standing.reason
        return "cancelled by the server" if self.state.is_cancelled(assignment) else ""
