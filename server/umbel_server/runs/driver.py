"""One run's thread: it calls the ServerApp, again after storage has failed, and notes how the run ended."""

import io
import logging
import threading
from collections.abc import Callable
from typing import Literal

import msgspec
from obstore.exceptions import BaseError as StoreError
from sqlalchemy.exc import OperationalError

from umbel.errors import UmbelError
from umbel.examples import load_examples
from umbel.loops import Loop
from umbel.tensors import Tensors
from umbel_server.fleet.parts import Fleet
from umbel_server.limits.daily_bytes import QuotaReached
from umbel_server.models.held_out import HELD_OUT, HeldOut
from umbel_server.models.plans import Plans
from umbel_server.rounds.events import Order
from umbel_server.runs.fleet_grid import FleetGrid
from umbel_server.runs.fleet_port import FleetPort
from umbel_server.runs.fleet_run import FleetRun
from umbel_server.runs.server_app import train_on
from umbel_server.runs.settings import RunSettings
from umbel_server.runs.stored_runs import StoredRuns

log = logging.getLogger("umbel.runs")

STORAGE_ATTEMPTS = 8
STORAGE_PAUSES = (0.5, 30.0)
"""A run pauses after STORAGE_ATTEMPTS attempts in a row that ended because its database or blobs could not be used. Between
them are pauses, the shortest and the longest in seconds."""

OrderKind = Literal["pause", "stop"]


class RunDriver:
    """Drives one run in a thread of its own until the run ends, pauses, or the server leaves."""

    def __init__(
        self,
        id: str,
        runs: StoredRuns,
        fleet: Fleet,
        plans: Plans,
        clock: Callable[[], float],
        leaving: threading.Event,
    ) -> None:
        self._id, self._runs, self._fleet, self._plans, self._clock = id, runs, fleet, plans, clock
        self._leaving = leaving
        self._port: FleetPort | None = None
        self._ordered: OrderKind | None = None
        self._thread = Loop(f"run-{id}", self._execute, leaving, log)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread has not ended."""
        return self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended, at most that long."""
        self._thread.join(seconds)

    def order(self, what: OrderKind) -> None:
        """Pass an administrator's order on to the rounds, now or as soon as they begin."""
        self._ordered = what  # the thread may have no port yet, or get another one soon
        if (port := self._port) is not None:
            port.order(Order(self._clock(), what))

    def leave(self) -> None:
        """Make the rounds end where they are: the run goes on after the server's next start."""
        if (port := self._port) is not None:
            port.leave()

    def _execute(self) -> None:
        id = self._id
        try:
            state, reason = self._drive_on()
        except QuotaReached as error:
            state, reason = "paused", f"{error}; then resume the run"
        except UmbelError as error:
            state, reason = "failed", str(error)
        except Exception as error:
            log.exception("run %s failed", id)
            state, reason = "failed", f"{type(error).__name__}: {error}; the server's log has the details"
        finally:
            self._port = None  # before it is noted how the run ended: it may be resumed then
        while not self._leaving.is_set():
            try:
                if state == "failed":
                    self._runs.cancel_all(id, "the run failed")
                if state:
                    self._runs.note_end(id, state, reason)
                return
            except OperationalError as error:
                log.warning("run %s: that it %s cannot be noted yet: %s", id, state, _first_line(error))
                self._leaving.wait(STORAGE_PAUSES[0])

    def _drive_on(self) -> tuple[str, str]:
        """Drive the run until it ends, again from what is durable when the database or the blobs fail for a while."""
        attempts, newest = 0, -1
        while True:
            try:
                return self._drive()
            except (OperationalError, StoreError, OSError) as error:
                why = _first_line(error)
            if self._leaving.is_set():
                return "", ""
            attempts, newest = self._attempt(attempts, newest)
            if attempts > STORAGE_ATTEMPTS:
                return "paused", f"the server's database or blobs cannot be used: {why}; mend that and resume the run"
            log.warning("run %s goes on from its durable state in a moment: %s", self._id, why)
            self._leaving.wait(min(STORAGE_PAUSES[1], STORAGE_PAUSES[0] * 2 ** (attempts - 1)))

    def _attempt(self, attempts: int, newest: int) -> tuple[int, int]:
        """One attempt more, or the first when a round was committed since the last."""
        try:
            now = self._runs.get(self._id).round
        except OperationalError:
            return attempts + 1, newest
        return (attempts + 1 if now == newest else 1), now

    def _drive(self) -> tuple[str, str]:
        run = self._runs.get(self._id)
        settings = msgspec.convert(run.settings, RunSettings)
        plan = self._plans.get(run.plan)
        evaluate: Callable[[Tensors], dict[str, float]] | None = None
        if settings.held_out:
            examples = load_examples(io.BytesIO(self._fleet.blobs.get(settings.held_out)), plan.manifest, HELD_OUT)
            evaluate = HeldOut(plan, examples)
        of_fleet = FleetRun(
            self._fleet, self._id, run.population, plan, self._plans.blob(plan), self._clock, settings.encrypt_commands
        )
        port = FleetPort(of_fleet, evaluate)
        self._port = port
        if (order := self._ordered) is not None:
            port.order(Order(self._clock(), order))
        if self._leaving.is_set():
            return "", ""
        try:
            end = train_on(FleetGrid(port, settings))
        finally:
            port.close()
        return (end.state, end.reason) if end is not None else ("", "")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
