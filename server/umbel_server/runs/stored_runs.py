"""Runs as the database holds them: found, shown, and moved from state to state."""

import logging
from collections.abc import Callable, Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from umbel.errors import UmbelError
from umbel_server import answers
from umbel_server.fleet.parts import Fleet
from umbel_server.models.plans import Plans
from umbel_server.rounds.assignments import LIVE
from umbel_server.rounds.events import Finish
from umbel_server.runs import views as run_views
from umbel_server.runs.offers import finish_assignment
from umbel_server.storage.database import Assignment, Checkpoint, Round, Run

log = logging.getLogger("umbel.runs")

ENDED = ("finished", "stopped", "failed")
_ENDS = {"finished": "reached its end", "stopped": "was stopped", "failed": "failed"}


class UnknownRun(UmbelError):
    """A run that is not in the database."""


class StoredRuns:
    """The runs in the database."""

    def __init__(self, fleet: Fleet, plans: Plans, clock: Callable[[], float]) -> None:
        self._fleet, self._plans, self._clock = fleet, plans, clock

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

    def change(self, id: str, before: str, state: str, reason: str = "") -> bool:
        """Move a run from the state `before` to `state`; returns whether it was in that state.

        Of several calls at the same time one returns True.
        """
        with self._fleet.database.transaction() as session:
            row = session.get_one(Run, id, with_for_update=True)
            if row.state != before:
                return False
            row.state, row.reason, row.updated = state, reason, self._clock()
            if state == "running":
                row.resumed = row.updated
            _close_rounds(session, row)
        return True

    def note_end(self, id: str, state: str, reason: str) -> None:
        """Note how a run ended, or that it paused."""
        with self._fleet.database.transaction() as session:
            run = session.get_one(Run, id)
            run.state, run.reason, run.updated = state, reason, self._clock()
            _close_rounds(session, run)
        log.info("run %s %s %s", id, state, reason)

    def cancel_all(self, id: str, reason: str) -> None:
        """Cancel every assignment of a run that no thread drives, and tell the devices that are at work to stop."""
        with self._fleet.database.transaction() as session:
            live = session.scalars(select(Assignment.id).where(Assignment.run == id, Assignment.state.in_(LIVE))).all()
        for assignment in live:
            finish_assignment(self._fleet, Finish(assignment, "cancelled", reason, tell=True), self._clock())


def _close_rounds(session: Session, run: Run) -> None:
    """Abandon the round that was open when a run ended, within the caller's transaction."""
    if run.state in ENDED:
        session.execute(
            update(Round)
            .where(Round.run == run.id, Round.state == "open")
            .values(state="abandoned", reason=f"the run {_ENDS[run.state]}", closed=run.updated)
        )
