"""Runs: started, paused, resumed and stopped; a thread drives each of them."""

import io
import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import select

from umbel.errors import UmbelError
from umbel.examples import load_examples
from umbel.tensors import check, load
from umbel.topics import check_name
from umbel_server.fleet.parts import Fleet
from umbel_server.flower.strategies import make_strategy
from umbel_server.models.held_out import HELD_OUT
from umbel_server.models.plans import Plans
from umbel_server.runs.driver import OrderKind, RunDriver
from umbel_server.runs.settings import RunSettings
from umbel_server.runs.stored_runs import ENDED, StoredRuns
from umbel_server.storage.database import Run

log = logging.getLogger("umbel.runs")


class Runs(StoredRuns):
    """The runs in the database, and the threads of those that are running."""

    def __init__(self, fleet: Fleet, plans: Plans, clock: Callable[[], float] = time.time) -> None:
        super().__init__(fleet, plans, clock)
        self._drivers: dict[str, RunDriver] = {}
        self._leaving = threading.Event()
        self._launching = threading.Lock()
        """Held from when a run is noted as running to when its thread is there: an order in between would be lost."""

    def start(self, population: str, plan: str, settings: RunSettings, weights: str = "") -> Run:
        """Start a run, from the plan's initial weights or those at the address `weights`.

        Raises UmbelError when its plan, strategy, held-out examples or weights cannot be used.
        """
        check_name(population, "a population")
        opened = self._plans.get(plan)
        make_strategy(settings.strategy, settings.options, settings.learning_rate or opened.manifest.learning_rate)
        if settings.held_out:
            load_examples(io.BytesIO(self._fleet.blobs.get(settings.held_out)), opened.manifest, HELD_OUT)
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
            self.launch(run.id)
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
            self.launch(id)

    def stop(self, id: str) -> Run:
        """Stop a run for good after telling its devices; returns it once its thread has ended (at most 10 s)."""
        run = self.order(self.get(id), "stop")
        if self.change(run.id, "paused", "stopped", "stopped by an administrator"):  # it may have paused meanwhile
            self.cancel_all(run.id, "the run was stopped")
        return self.get(run.id)

    def pause(self, id: str) -> Run:
        """Pause a run: its devices are told to stop, updates that came are kept; raises UmbelError when it has ended."""
        run = self.get(id)
        if run.state in ENDED:
            raise UmbelError(
                f"run {run.id} has ended ({run.state}); 'umbel runs clone {run.id}' starts another like it"
            )
        return self.order(run, "pause")

    def resume(self, id: str) -> Run:
        """Go on with a paused run; raises UmbelError when it is not paused."""
        run = self.get(id)
        with self._launching:
            if not self.change(run.id, "paused", "running"):
                raise UmbelError(f"run {run.id} is {self.get(run.id).state}, only a paused run can be resumed")
            self.launch(run.id)
        return self.get(run.id)

    @property
    def driven(self) -> tuple[str, ...]:
        """The ids of the runs that a thread drives at this moment."""
        return tuple(id for id, driver in list(self._drivers.items()) if driver.is_alive)

    def order(self, run: Run, what: OrderKind) -> Run:
        """Give a run's thread an order, if it has one; returns the run once the thread has ended (at most 10 s)."""
        with self._launching:
            driver = self._drivers.get(run.id)
            if driver is None or not driver.is_alive:
                return self.get(run.id)
            driver.order(what)
        driver.join(10)
        return self.get(run.id)

    def shutdown(self) -> None:
        """End every thread; the runs stay `running` and go on after the next start."""
        self._leaving.set()
        drivers = list(self._drivers.values())
        for driver in drivers:
            driver.leave()
        for driver in drivers:
            driver.join(10)

    def launch(self, id: str) -> None:
        """Start the thread that drives a run; the caller has noted the run as running."""
        self._drivers[id] = RunDriver(id, self, self._fleet, self._plans, self._clock, self._leaving)
        self._drivers[id].start()
