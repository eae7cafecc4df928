"""Runs: each is a thread that drives the Flower ServerApp over a FleetGrid, committing a checkpoint a round."""

import io
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
from obstore.exceptions import BaseError as StoreError
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from umbel.errors import UmbelError
from umbel.examples import load_examples
from umbel.tensors import Tensors, check, load
from umbel.topics import check_name
from umbel_server import answers
from umbel_server.fleet.parts import Fleet
from umbel_server.flower.strategies import make_strategy
from umbel_server.limits.daily_bytes import QuotaReached
from umbel_server.models.held_out import HeldOut
from umbel_server.models.plans import Plans
from umbel_server.rounds.assignments import LIVE
from umbel_server.rounds.events import Finish, Order
from umbel_server.runs import views as run_views
from umbel_server.runs.fleet_grid import FleetGrid
from umbel_server.runs.fleet_port import FleetPort
from umbel_server.runs.fleet_run import FleetRun
from umbel_server.runs.offers import finish_assignment
from umbel_server.runs.server_app import train_on
from umbel_server.runs.settings import RunSettings
from umbel_server.storage.database import Assignment, Checkpoint, Round, Run

log = logging.getLogger("umbel.runs")

HELD_OUT = "the held-out examples"
STORAGE_ATTEMPTS = 8
STORAGE_PAUSES = (0.5, 30.0)
"""After how many attempts in a row to go on a run pauses because its database or blobs cannot be used; the first and the
longest pause between them in seconds."""

ENDED = ("finished", "stopped", "failed")
_ENDS = {"finished": "reached its end", "stopped": "was stopped", "failed": "failed"}


class UnknownRun(UmbelError):
    """A run that is not in the database."""


class Runs:
    """The runs in the database, and the threads of those that are running."""

    def __init__(self, fleet: Fleet, plans: Plans, clock: Callable[[], float] = time.time) -> None:
        self._fleet, self._plans, self._clock = fleet, plans, clock
        self._ports: dict[str, FleetPort] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._orders: dict[str, Literal["pause", "stop"]] = {}
        self._leaving = threading.Event()
        self._launching = threading.Lock()
        """Held from when a run is noted as running to when its thread is there: an order in between would reach nobody."""

    def start(self, population: str, plan: str, settings: RunSettings, weights: str = "") -> Run:
        """Start a run, from the plan's initial weights or those at the address `weights`.

        Raises UmbelError when its plan, strategy, held-out examples or weights cannot be used.
        """
        check_name(population, "a population")
        opened = self._plans.get(plan)
        make_strategy(settings.strategy, settings.options, settings.learning_rate or opened.manifest.learning_rate)
        if settings.held_out:
            load_examples(self._held_out(settings), opened.manifest, HELD_OUT)
        if settings.until and (not settings.held_out or settings.until not in opened.manifest.metric_names):
            raise UmbelError(
                f"until: {settings.until!r} needs held-out examples and one of the plan's metrics "
                f"({', '.join(opened.manifest.metric_names)})"
            )
        if weights:
            check(load(self._fleet.blobs.get(weights)), opened.manifest.weights, "the weights to start from")
        now = self._clock()
        run = Run(
            id=secrets.token_hex(6),
            population=population,
            plan=plan,
            task=opened.manifest.task,
            settings=msgspec.to_builtins(settings),
            created=now,
            updated=now,
            state="running",
            weights=weights,
        )
        with self._launching:
            with self._fleet.database.transaction() as session:
                session.add(run)
                self._fleet.ownership.claim_stored(session, population, plan, weights, settings.held_out)
            self._launch(run.id)
        return run

    def clone(self, id: str, changes: dict[str, Any], weights: str = "") -> Run:
        """Start a run like another, with `changes` to its settings by their names; those of the policy in "policy".

        It starts where the other one started, or from the weights at the address `weights`. Raises UmbelError.
        """
        run = self.get(id)
        if not isinstance(changes.get("policy", {}), dict):
            raise UmbelError("policy: the changed settings by their names were expected")
        policy = {**run.settings.get("policy", {}), **changes.get("policy", {})}
        try:
            settings = msgspec.convert({**run.settings, **changes, "policy": policy}, RunSettings)
        except msgspec.ValidationError as error:
            raise UmbelError(f"the changed settings of run {run.id} cannot be used: {error}") from error
        return self.start(run.population, run.plan, settings, weights or run.weights)

    def go_on(self) -> None:
        """Go on with every run that was running when the server stopped, from what is durable."""
        with self._fleet.database.transaction() as session:
            ids = list(session.scalars(select(Run.id).where(Run.state == "running")))
        for id in ids:
            log.info("run %s goes on", id)
            self._launch(id)

    def stop(self, id: str) -> Run:
        """Stop a run for good after telling its devices; returns it once its thread has ended (at most 10 s)."""
        run = self._order(self.get(id), "stop")
        if self._change(run.id, "paused", "stopped", "stopped by an administrator"):  # it may have paused meanwhile
            self._cancel_all(run.id, "the run was stopped")
        return self.get(run.id)

    def pause(self, id: str) -> Run:
        """Pause a run: its devices are told to stop, updates that came are kept; raises UmbelError when it has ended."""
        run = self.get(id)
        if run.state in ENDED:
            raise UmbelError(
                f"run {run.id} has ended ({run.state}); 'umbel runs clone {run.id}' starts another like it"
            )
        return self._order(run, "pause")

    def resume(self, id: str) -> Run:
        """Go on with a paused run; raises UmbelError when it is not paused."""
        run = self.get(id)
        with self._launching:
            if not self._change(run.id, "paused", "running"):
                raise UmbelError(f"run {run.id} is {self.get(run.id).state}, only a paused run can be resumed")
            self._launch(run.id)
        return self.get(run.id)

    def _change(self, id: str, before: str, state: str, reason: str = "") -> bool:
        """Move a run on from the state `before`; of several who ask at once one does, and the others are told False."""
        with self._fleet.database.transaction() as session:
            row = session.get_one(Run, id, with_for_update=True)
            if row.state != before:
                return False
            row.state, row.reason, row.updated = state, reason, self._clock()
            if state == "running":
                row.resumed = row.updated
            _close_rounds(session, row)
        return True

    def _order(self, run: Run, what: Literal["pause", "stop"]) -> Run:
        with self._launching:
            thread = self._threads.get(run.id)
            if thread is None or not thread.is_alive():
                return self.get(run.id)
            self._orders[run.id] = what  # for a thread that has no port yet, or another one soon
            if (port := self._ports.get(run.id)) is not None:
                port.order(Order(self._clock(), what))
        thread.join(10)
        return self.get(run.id)

    def shutdown(self) -> None:
        """End every thread; the runs stay `running` and go on after the next start."""
        self._leaving.set()
        for port in list(self._ports.values()):
            port.leave()
        for thread in list(self._threads.values()):
            thread.join(10)

    def get(self, id: str, populations: Sequence[str] = ()) -> Run:
        """One run, by its id, the beginning of it, or "latest", among those on `populations` where some are given.

        Raises UnknownRun.
        """
        query = select(Run).where(Run.population.in_(populations)) if populations else select(Run)
        with self._fleet.database.transaction() as session:
            if id == "latest":
                newest = session.scalars(query.order_by(Run.created.desc()).limit(1)).one_or_none()
                if newest is None:
                    raise UnknownRun("there are no runs yet; start one with 'umbel runs start'")
                return newest
            found = session.scalars(query.where(Run.id.startswith(id, autoescape=True)).limit(2)).all()
        if len(found) != 1 or not id:
            what = "no run" if not found else "more than one run"
            raise UnknownRun(f"{what} has an id beginning with {id!r}; see 'umbel runs list'")
        return found[0]

    def list(self, populations: Sequence[str] = ()) -> Sequence[Run]:
        """Every run, or those on these `populations`, newest first."""
        query = select(Run).where(Run.population.in_(populations)) if populations else select(Run)
        with self._fleet.database.transaction() as session:
            return session.scalars(query.order_by(Run.created.desc())).all()

    def checkpoint(self, id: str, round: int | None = None) -> Checkpoint:
        """The checkpoint of one round, or the newest; raises UmbelError when there is none."""
        run = self.get(id)
        query = select(Checkpoint).where(Checkpoint.run == run.id).order_by(Checkpoint.round.desc()).limit(1)
        if round is not None:
            query = query.where(Checkpoint.round == round)
        with self._fleet.database.transaction() as session:
            found = session.scalars(query).one_or_none()
        if found is None:
            raise UmbelError(f"run {run.id} has no checkpoint of round {round if round is not None else 'any'} yet")
        return found

    def show(self, id: str, round: int | None = None) -> answers.RunDetails:
        """A run as the API shows it: with all checkpoints, and of one round (default: the newest) attempts and assignments."""
        run = self.get(id)
        return run_views.show(self._fleet.database, run, self._plans.get(run.plan).manifest.metrics, round)

    def _held_out(self, settings: RunSettings) -> io.BytesIO:
        return io.BytesIO(self._fleet.blobs.get(settings.held_out))

    def _launch(self, id: str) -> None:
        self._ports.pop(id, None)
        self._orders.pop(id, None)
        thread = threading.Thread(target=self._execute, args=(id,), name=f"run-{id}", daemon=True)
        self._threads[id] = thread
        thread.start()

    def _execute(self, id: str) -> None:
        try:
            state, reason = self._drive_on(id)
        except QuotaReached as error:
            state, reason = "paused", f"{error}; then resume the run"
        except UmbelError as error:
            state, reason = "failed", str(error)
        except Exception as error:
            log.exception("run %s failed", id)
            state, reason = "failed", f"{type(error).__name__}: {error}; the server's log has the details"
        finally:
            self._fleet.exchange.unlisten(id)
            self._ports.pop(id, None)  # before it is noted how the run ended: it may be resumed then
        while not self._leaving.is_set():
            try:
                if state == "failed":
                    self._cancel_all(id, "the run failed")
                if state:
                    self._note(id, state, reason)
                return
            except OperationalError as error:
                log.warning("run %s: that it %s cannot be noted yet: %s", id, state, _first_line(error))
                self._leaving.wait(STORAGE_PAUSES[0])

    def _drive_on(self, id: str) -> tuple[str, str]:
        """Drive the run until it ends, again from what is durable when the database or the blobs fail for a while."""
        attempts, newest = 0, -1
        while True:
            try:
                return self._drive(id)
            except (OperationalError, StoreError, OSError) as error:
                why = _first_line(error)
            if self._leaving.is_set():
                return "", ""
            attempts, newest = self._attempt(id, attempts, newest)
            if attempts > STORAGE_ATTEMPTS:
                return "paused", f"the server's database or blobs cannot be used: {why}; mend that and resume the run"
            log.warning("run %s goes on from its durable state in a moment: %s", id, why)
            self._leaving.wait(min(STORAGE_PAUSES[1], STORAGE_PAUSES[0] * 2 ** (attempts - 1)))

    def _attempt(self, id: str, attempts: int, newest: int) -> tuple[int, int]:
        """One attempt more, or the first when a round was committed since the last."""
        try:
            now = self.get(id).round
        except OperationalError:
            return attempts + 1, newest
        return (attempts + 1 if now == newest else 1), now

    def _cancel_all(self, id: str, reason: str) -> None:
        """Give every assignment of a run that nobody drives its final state, and tell the devices that are at work."""
        with self._fleet.database.transaction() as session:
            live = session.scalars(select(Assignment.id).where(Assignment.run == id, Assignment.state.in_(LIVE))).all()
        for assignment in live:
            finish_assignment(self._fleet, Finish(assignment, "cancelled", reason, tell=True), self._clock())

    def _note(self, id: str, state: str, reason: str) -> None:
        with self._fleet.database.transaction() as session:
            run = session.get_one(Run, id)
            run.state, run.reason, run.updated = state, reason, self._clock()
            _close_rounds(session, run)
        log.info("run %s %s %s", id, state, reason)

    def _drive(self, id: str) -> tuple[str, str]:
        run = self.get(id)
        settings = msgspec.convert(run.settings, RunSettings)
        plan = self._plans.get(run.plan)
        evaluate: Callable[[Tensors], dict[str, float]] | None = None
        if settings.held_out:
            examples = load_examples(self._held_out(settings), plan.manifest, HELD_OUT)
            evaluate = HeldOut(plan, examples)
        of_fleet = FleetRun(
            self._fleet, id, run.population, plan, self._plans.blob(plan), self._clock, settings.encrypt_commands
        )
        port = FleetPort(of_fleet, evaluate)
        self._ports[id] = port
        if (order := self._orders.get(id)) is not None:
            port.order(Order(self._clock(), order))
        if self._leaving.is_set():
            return "", ""
        try:
            end = train_on(FleetGrid(port, settings))
        finally:
            port.close()
        return (end.state, end.reason) if end is not None else ("", "")


def _close_rounds(session: Session, run: Run) -> None:
    """Note, within the caller's transaction, that nobody goes on with the round that was open when a run ended."""
    if run.state in ENDED:
        session.execute(
            update(Round)
            .where(Round.run == run.id, Round.state == "open")
            .values(state="abandoned", reason=f"the run {_ENDS[run.state]}", closed=run.updated)
        )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
