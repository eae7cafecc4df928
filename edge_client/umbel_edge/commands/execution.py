"""Executing queued commands, one at a time, in their order."""

import logging
import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from umbel import messages
from umbel.atomic import remove_interrupted
from umbel.enrolment import CONNECTION_PATH
from umbel.errors import MessageError, SignatureError, TensorError, UmbelError
from umbel.messages import AckState, Command, Outcome
from umbel.signing import Keys
from umbel_edge.commands.answers import Answers
from umbel_edge.commands.handlers.context import HandlerContext
from umbel_edge.commands.handlers.table import Handlers, Queued
from umbel_edge.connection.http import drain
from umbel_edge.device.full_storage import FULL, is_full
from umbel_edge.device.memory import release_memory
from umbel_edge.device.state import KEPT_SECONDS
from umbel_edge.training.trainer import Cancelled
from umbel_edge.waiting import Stopped

log = logging.getLogger("umbel.agent")

IDLE_SECONDS = 0.5
"""An agent that gets no command for this time gives memory back."""


@dataclass(frozen=True)
class Job:
    """A command that waits its turn, and its handler."""

    command: Command
    handler: Queued[Any]

    @property
    def kind(self) -> str:
        """The kind of command, for the log."""
        return type(self.command.body).__name__.lower()


Decode = Callable[[bytes, Keys], Command]
"""Verifies and decodes a command, as umbel.messages.decode_command."""
Jobs = queue.Queue[Job | None]
"""Commands in the order in which they came. None asks to look whether the agent is to stop, or the device is barred."""


class Execution:
    """The loop that works off `jobs`; `say_hello` publishes the device's status."""

    def __init__(
        self,
        context: HandlerContext,
        handlers: Handlers,
        answers: Answers,
        jobs: Jobs,
        say_hello: Callable[[], None],
        decode: Decode = messages.decode_command,
    ) -> None:
        self._context, self._handlers, self._answers, self._jobs = context, handlers, answers, jobs
        self._say_hello, self._decode = say_hello, decode
        self._released = False

    def resume(self) -> None:
        """Queue the commands that an earlier process began and did not answer, in their order, if their kind is resumed.

        Every other command that was not answered counts as never received: the server sends it again.
        """
        inbox, resumed = self._context.state.inbox, set()
        for id, token in inbox.unanswered().items():
            job = self._job_of(token)
            if job is not None:
                log.info("%s %s continues after a restart", job.kind, id)
                resumed.add(id)
                self._jobs.put(job)
            else:
                inbox.forget(id)
        _clean_leftovers(self._context, resumed)

    def run(self) -> None:
        """Work until the agent stops; raises UmbelError when the device is revoked."""
        participation = self._context.participation
        while not self._context.stopping.is_set():
            job = self._next()
            if participation.reason:
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

    def _next(self) -> Job | None:
        """Wait for the next job; once in every idle time, memory is given back meanwhile."""
        if not self._released:
            try:
                return self._jobs.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                release_memory()
                self._released = True
        job = self._jobs.get()
        self._released = False
        return job

    def _job_of(self, token: bytes) -> Job | None:
        """The job of a command from before a restart; None when it is not resumed."""
        try:
            command = self._decode(token, self._context.keys.known)
        except (SignatureError, MessageError):
            return None
        handler = self._handlers[type(command.body)]
        if isinstance(handler, Queued) and handler.resumed and command.expires > self._context.now():
            return Job(command, handler)
        return None

    def _stand_by(self, job: Job | None) -> None:
        """Give up the commands from before the device was barred, and wait until the server works with it again."""
        participation = self._context.participation
        while True:
            if job is not None:
                self._give_up(job, "cancelled", participation.reason)
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
        participation.wait_out(lambda: drain(self._context.http.request("GET", CONNECTION_PATH)))
        self._say_hello()

    def _execute(self, job: Job) -> None:
        command, handler = job.command, job.handler
        if command.expires <= self._context.now():
            self._give_up(job, "expired", "the command expired while it waited for the one before it")
            return
        if handler.admit is not None:
            if broken := handler.admit(self._context, command.id, command.body):
                self._give_up(job, "declined", ", ".join(violation.phrase for violation in broken))
                return
            self._answers.accept(command)
        try:
            outcome = handler.handle(self._context, command.id, command.body)
        except Stopped:
            return
        except Cancelled as error:
            if not self._context.stopping.is_set():
                self._give_up(job, "cancelled", str(error))
        except TensorError as error:
            self._give_up(job, "rejected", str(error))
        except UmbelError as error:
            self._give_up(job, "failed", str(error))
        except Exception as error:
            if is_full(error):
                self._give_up(job, "failed", FULL)
                return
            log.exception("%s %s failed", job.kind, command.id)
            self._give_up(job, "failed", f"{type(error).__name__}: {error}; the device's log has the details")
        else:
            self._finish(job, outcome)
            log.info("%s %s done", job.kind, command.id)

    def _give_up(self, job: Job, state: AckState, reason: str) -> None:
        job.handler.clean(self._context, job.command.id)
        self._answers.end(job.command, state, reason)

    def _finish(self, job: Job, outcome: Outcome | None) -> None:
        if outcome is None:
            self._answers.end(job.command, "done")
            self._say_hello()
        else:
            self._answers.give(job.command, outcome, job.handler.is_round)
        job.handler.clean(self._context, job.command.id)


def _clean_leftovers(context: HandlerContext, resumed: set[str]) -> None:
    """Remove the files of earlier processes, except those of the commands (ids) that are resumed."""
    folder = context.state.folder
    remove_interrupted(folder)
    context.pending_updates.drop_others(resumed)
    if not resumed:
        context.progress_path.unlink(missing_ok=True)
    oldest = context.now() - KEPT_SECONDS
    for part in (*folder.glob("downloads/*.part"), *folder.glob("plans/*.part")):
        if part.stat().st_mtime < oldest:
            part.unlink()
