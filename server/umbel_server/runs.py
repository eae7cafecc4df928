"""Runs: each is a thread that drives the Flower ServerApp over a FleetGrid, committing a checkpoint a round."""

import io
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import func, select, update

from umbel.errors import UmbelError
from umbel.examples import load_examples
from umbel.tensors import Tensors
from umbel.topics import check_name
from umbel_server.database import Assignment, Checkpoint, Run
from umbel_server.evaluation import HeldOut
from umbel_server.fleet_grid import Fleet, FleetGrid
from umbel_server.flower_app import app
from umbel_server.flower_messages import context
from umbel_server.plans import Plans
from umbel_server.run_journal import RunJournal
from umbel_server.strategies import make_strategy

log = logging.getLogger("umbel.runs")

HELD_OUT = "the held-out examples"


class UnknownRun(UmbelError):
    """A run that is not in the database."""


class RunSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a run trains.

    `strategy` is a name of umbel_server.strategies with its `options`; `fraction` of the devices online, at least
    `minimum`, train each round for `epochs` (or `max_steps` > 0 steps) with `learning_rate` (0: the plan's). `deadline`
    is the seconds a round may take, and how long a round waits for its minimum of devices. `held_out` is the digest of
    an `.npz` that every checkpoint is evaluated on; the run ends early once its metric `until` is at least `at_least`.
    """

    strategy: str = "fedavg"
    options: dict[str, float] = {}
    rounds: int = 10
    fraction: float = 1.0
    minimum: int = 1
    epochs: int = 1
    max_steps: int = 0
    learning_rate: float = 0.0
    seed: int = 0
    deadline: float = 120.0
    held_out: str = ""
    until: str = ""
    at_least: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (
            ("rounds", 1),
            ("minimum", 1),
            ("epochs", 1),
            ("max_steps", 0),
            ("learning_rate", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} should be at least {least}, got {getattr(self, name)}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction should be over 0 and at most 1, got {self.fraction}")
        if not self.deadline > 0:
            raise ValueError(f"deadline should be a positive number of seconds, got {self.deadline}")


class Runs:
    """The runs in the database, and the threads of those that are running."""

    def __init__(self, fleet: Fleet, plans: Plans, clock: Callable[[], float] = time.time) -> None:
        self._fleet, self._plans, self._clock = fleet, plans, clock
        self._stops: dict[str, threading.Event] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._leaving = threading.Event()

    def start(self, population: str, plan: str, settings: RunSettings) -> Run:
        """Start a run; raises UmbelError when its plan, strategy or held-out examples cannot be used."""
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
        )
        with self._fleet.database.transaction() as session:
            session.add(run)
        self._launch(run.id)
        return run

    def resume(self) -> None:
        """Go on with every run that was running when the server stopped, from its newest checkpoint."""
        with self._fleet.database.transaction() as session:
            ids = list(session.scalars(select(Run.id).where(Run.state == "running")))
            # What was on its way belongs to rounds that begin again: each assignment gets its one final state.
            session.execute(
                update(Assignment)
                .where(Assignment.state.in_(("offered", "accepted", "uploaded")))
                .values(state="cancelled", reason="the server was restarted", updated=self._clock())
            )
        for id in ids:
            log.info("run %s goes on", id)
            self._launch(id)

    def stop(self, id: str) -> Run:
        """Stop a run after telling its devices; returns it once its thread has ended (at most 10 s)."""
        id = self.get(id).id
        if (event := self._stops.get(id)) is not None:
            event.set()
            self._fleet.exchange.wake()
            self._threads[id].join(10)
        return self.get(id)

    def shutdown(self) -> None:
        """End every thread; the runs stay `running` and go on after the next start."""
        self._leaving.set()
        self._fleet.exchange.wake()
        for thread in self._threads.values():
            thread.join(10)

    def get(self, id: str) -> Run:
        """One run, by its id, the beginning of it, or "latest"; raises UnknownRun."""
        with self._fleet.database.transaction() as session:
            if id == "latest":
                newest = session.scalars(select(Run).order_by(Run.created.desc()).limit(1)).one_or_none()
                if newest is None:
                    raise UnknownRun("there are no runs yet; start one with 'umbel runs start'")
                return newest
            found = session.scalars(select(Run).where(Run.id.startswith(id, autoescape=True)).limit(2)).all()
        if len(found) != 1 or not id:
            what = "no run" if not found else "more than one run"
            raise UnknownRun(f"{what} has an id beginning with {id!r}; see 'umbel runs list'")
        return found[0]

    def list(self) -> Sequence[Run]:
        """Every run, newest first."""
        with self._fleet.database.transaction() as session:
            return session.scalars(select(Run).order_by(Run.created.desc())).all()

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

    def show(self, id: str, round: int | None = None) -> dict[str, Any]:
        """A run as the API shows it: with all checkpoints and the assignments of one round (default: the newest)."""
        run = self.get(id)
        with self._fleet.database.transaction() as session:
            checkpoints = session.scalars(
                select(Checkpoint).where(Checkpoint.run == run.id).order_by(Checkpoint.round)
            ).all()
            newest = session.scalar(select(func.max(Assignment.round)).where(Assignment.run == run.id)) or 0
            assignments = session.scalars(
                select(Assignment)
                .where(Assignment.run == run.id, Assignment.round == (newest if round is None else round))
                .order_by(Assignment.device)
            ).all()
        return {
            **describe(run),
            "checkpoints": [_describe_checkpoint(checkpoint) for checkpoint in checkpoints],
            "assignments": [_describe_assignment(assignment) for assignment in assignments],
        }

    def _held_out(self, settings: RunSettings) -> io.BytesIO:
        return io.BytesIO(self._fleet.blobs.get(settings.held_out))

    def _launch(self, id: str) -> None:
        self._stops[id] = threading.Event()
        thread = threading.Thread(target=self._execute, args=(id,), name=f"run-{id}", daemon=True)
        self._threads[id] = thread
        thread.start()

    def _execute(self, id: str) -> None:
        try:
            self._drive(id)
            state, reason = "finished", ""
        except UmbelError as error:
            state, reason = "failed", str(error)
        except Exception as error:
            log.exception("run %s failed", id)
            state, reason = "failed", f"{type(error).__name__}: {error}; the server's log has the details"
        if self._leaving.is_set():
            return
        if self._stops[id].is_set():
            state, reason = "stopped", "stopped by an administrator"
        with self._fleet.database.transaction() as session:
            run = session.get_one(Run, id)
            run.state, run.reason, run.updated = state, reason, self._clock()
        log.info("run %s %s %s", id, state, reason)

    def _drive(self, id: str) -> None:
        run = self.get(id)
        settings = msgspec.convert(run.settings, RunSettings)
        plan = self._plans.get(run.plan)
        evaluate: Callable[[Tensors], dict[str, float]] | None = None
        if settings.held_out:
            examples = load_examples(self._held_out(settings), plan.manifest, HELD_OUT)
            evaluate = HeldOut(plan, examples)

        def interrupted() -> bool:
            return self._stops[id].is_set() or self._leaving.is_set()

        journal = RunJournal(self._fleet.database, self._fleet.blobs, id, plan, evaluate, interrupted, self._clock)
        grid = FleetGrid(
            self._fleet, id, run.population, plan, self._plans.blob(plan), journal, interrupted, self._clock
        )
        app(grid, context(int(id, 16), _run_config(plan.path.as_posix(), settings)))


def _run_config(plan: str, settings: RunSettings) -> dict[str, bool | float | int | str]:
    """The settings as the ServerApp reads them from any Flower run's configuration."""
    config: dict[str, bool | float | int | str] = {
        "plan": plan,
        "strategy": settings.strategy,
        "rounds": settings.rounds,
        "fraction": settings.fraction,
        "minimum": settings.minimum,
        "epochs": settings.epochs,
        "max-steps": settings.max_steps,
        "seed": settings.seed,
        "deadline": settings.deadline,
        "until": settings.until,
        "at-least": settings.at_least,
    }
    if settings.learning_rate:
        config["learning-rate"] = settings.learning_rate
    return config | {f"strategy.{name}": value for name, value in settings.options.items()}


def describe(run: Run) -> dict[str, Any]:
    """A run as the API shows it; times in Unix seconds."""
    return {
        "id": run.id,
        "population": run.population,
        "task": run.task,
        "plan": run.plan,
        "state": run.state,
        "reason": run.reason,
        "round": run.round,
        "rounds": run.settings.get("rounds", 0),
        "strategy": run.settings.get("strategy", ""),
        "settings": run.settings,
        "created": run.created,
        "updated": run.updated,
    }


def _describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "round": checkpoint.round,
        "weights": checkpoint.weights,
        "metrics": checkpoint.metrics,
        "fleet_metrics": checkpoint.fleet_metrics,
        "contributors": checkpoint.contributors,
        "started": checkpoint.started,
        "committed": checkpoint.committed,
    }


def _describe_assignment(assignment: Assignment) -> dict[str, Any]:
    return {
        "id": assignment.id,
        "device": assignment.device,
        "round": assignment.round,
        "kind": assignment.kind,
        "state": assignment.state,
        "reason": assignment.reason,
        "examples": assignment.examples,
        "seconds": assignment.seconds,
        "metrics": assignment.metrics,
        "since": assignment.updated,
    }
