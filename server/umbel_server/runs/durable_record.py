"""One run in the database: its newest checkpoint, the round under way, and its cost."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from umbel_server.rounds.assignments import LIVE
from umbel_server.rounds.engine import OpenRound, Record
from umbel_server.rounds.open_assignments import OpenAssignment
from umbel_server.runs.fleet_run import FleetRun
from umbel_server.runs.port import Cost
from umbel_server.runs.settings import RunSettings
from umbel_server.storage.database import Assignment, Checkpoint, Round, Run


class DurableRecord:
    """Reads one run from the database."""

    def __init__(self, run: FleetRun) -> None:
        self._run = run

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint; None when there is none yet."""
        query = select(Checkpoint).where(Checkpoint.run == self._run.id).order_by(Checkpoint.round.desc()).limit(1)
        with self._run.fleet.database.transaction() as session:
            return session.scalars(query).one_or_none()

    def first_weights(self) -> str:
        """The address of the weights that the run was started from; empty for the plan's initial ones."""
        with self._run.fleet.database.transaction() as session:
            return session.get_one(Run, self._run.id).weights

    def read(self, version: int, settings: RunSettings) -> Record:
        """The run since checkpoint `version`, its newest, as the round engine recovers it."""
        with self._run.fleet.database.transaction() as session:
            return self._read(session, version, settings)

    def _read(self, session: Session, version: int, settings: RunSettings) -> Record:
        run = session.get_one(Run, self._run.id)
        attempts = session.scalars(
            select(Round).where(Round.run == self._run.id, Round.number == version + 1).order_by(Round.attempt)
        ).all()
        opened = [attempt for attempt in attempts if attempt.state == "open"]
        live = session.scalars(
            select(Assignment)
            .where(Assignment.run == self._run.id, Assignment.kind == "train", Assignment.state.in_(LIVE))
            .order_by(Assignment.updated, Assignment.id)
        )
        made = session.scalar(select(func.count()).where(Assignment.run == self._run.id, Assignment.kind == "train"))
        return Record(
            run=self._run.id,
            seed=settings.seed,
            policy=settings.policy,
            rounds=settings.rounds,
            version=version,
            open=_open_round(opened[-1], run.resumed) if opened else None,
            work=tuple(_work(assignment) for assignment in live),
            failures=sum(attempt.state == "abandoned" and attempt.closed > run.resumed for attempt in attempts),
            attempts=attempts[-1].attempt + 1 if attempts else 0,
            made=made or 0,
        )

    def cost(self) -> Cost:
        """Hours since the run was started, and the bytes of weights and updates that travelled for it."""
        total = func.coalesce(func.sum(Assignment.bytes_down + Assignment.bytes_up), 0)
        with self._run.fleet.database.transaction() as session:
            created = session.get_one(Run, self._run.id).created
            travelled = session.scalar(select(total).where(Assignment.run == self._run.id))
        return Cost((self._run.now - created) / 3600, int(travelled or 0))


def _open_round(row: Round, resumed: float) -> OpenRound:
    return OpenRound(row.number, row.attempt, row.opened, row.closes, row.wanted, row.opened <= resumed)


def _work(row: Assignment) -> OpenAssignment:
    base, examples = row.round - 1, row.examples
    match row.state:
        case "uploaded":
            return OpenAssignment(row.id, row.device, base, row.closes, "arrived", examples)
        case "accepted":
            return OpenAssignment(row.id, row.device, base, row.closes, "accepted")
        case _:
            return OpenAssignment(row.id, row.device, base, row.closes)
