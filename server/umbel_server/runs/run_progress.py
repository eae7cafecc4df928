"""The progress of a run at this moment; cheap enough to ask several times a second."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import asdict
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from umbel_server import answers
from umbel_server.devices.register import DELETED
from umbel_server.rounds.assignments import LIVE, WITH_DEVICE
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.rounds.selection import available
from umbel_server.runs.fleet_port import candidate
from umbel_server.runs.views import describe, describe_attempt, describe_checkpoint
from umbel_server.storage.database import Assignment, Checkpoint, Database, Device, Round, Run

NEWEST, WAITED_FOR, ABANDONED = 60, 8, 5
"""Checkpoints, assignments and abandoned attempts that are shown at most."""
SHARE = 0.05
"""Of the time that may go into adding up all that travelled for a run."""


class RunProgress:
    """Looks at runs; what takes longer the longer a run is, is remembered for a while."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        self._travelled: dict[str, tuple[float, int, int]] = {}

    def look(self, run: Run, after: int | None = None) -> answers.LiveRun:
        """A run and its progress; its checkpoints are those after round `after`, or the newest ones."""
        policy = msgspec.convert(run.settings.get("policy", {}), RoundPolicy)
        now = self._clock()
        with self._database.transaction() as session:
            attempt = session.scalars(
                select(Round).where(Round.run == run.id).order_by(Round.number.desc(), Round.attempt.desc()).limit(1)
            ).one_or_none()
            number = attempt.number if attempt is not None else 0
            training = (
                Assignment.run == run.id,
                Assignment.round >= number - (policy.max_staleness if policy.folds_late else 0),
                Assignment.kind == "train",
            )
            at_work = attempt is not None and attempt.state == "open"
            down, up = self._bytes(session, run.id)
            return answers.LiveRun(
                **asdict(describe(run)),
                now=now,
                bytes_down=down,
                bytes_up=up,
                checkpoints=_checkpoints(session, run.id, after),
                attempt=describe_attempt(attempt) if attempt is not None else None,
                next=self._next(session, run, attempt, policy),
                states=_states(session, training, attempt),
                waiting=_waiting(session, training),
                abandoned=_abandoned(session, run.id),
                devices=None if at_work else _devices(session, run, training, policy, now),
            )

    def _bytes(self, session: Session, run: str) -> tuple[int, int]:
        again, down, up = self._travelled.get(run, (0.0, 0, 0))
        began = time.monotonic()
        if began >= again:
            total = select(func.sum(Assignment.bytes_down), func.sum(Assignment.bytes_up)).where(Assignment.run == run)
            down, up = (int(value or 0) for value in session.execute(total).one())
            ended = time.monotonic()
            self._travelled[run] = ended + (ended - began) / SHARE, down, up
        return down, up

    def _next(self, session: Session, run: Run, attempt: Round | None, policy: RoundPolicy) -> float:
        if attempt is None or attempt.state != "abandoned":
            return 0.0
        failures = session.scalar(
            select(func.count()).where(
                Round.run == run.id,
                Round.number == attempt.number,
                Round.state == "abandoned",
                Round.closed > run.resumed,
            )
        )
        return attempt.closed + policy.rest(failures or 1)


def _checkpoints(session: Session, run: str, after: int | None) -> list[answers.Checkpoint]:
    query = select(Checkpoint).where(Checkpoint.run == run).order_by(Checkpoint.round.desc())
    query = query.limit(NEWEST) if after is None else query.where(Checkpoint.round > after)
    return [describe_checkpoint(row) for row in reversed(session.scalars(query).all())]


def _states(session: Session, training: Sequence[Any], attempt: Round | None) -> answers.StateCounts:
    counts = answers.StateCounts({}, {})
    if attempt is None:
        return counts
    of_attempt = (Assignment.round == attempt.number) & (Assignment.offered >= attempt.opened)
    query = (
        select(Assignment.round, Assignment.state, func.count())
        .where(*training, of_attempt | ((Assignment.round < attempt.number) & Assignment.state.in_(LIVE)))
        .group_by(Assignment.round, Assignment.state)
    )
    for round, state, count in session.execute(query):
        when = counts.round if round == attempt.number else counts.earlier
        when[state] = when.get(state, 0) + count
    return counts


def _waiting(session: Session, training: Sequence[Any]) -> list[answers.WaitedFor]:
    query = (
        select(Assignment, Device.online)
        .join(Device, (Device.population == Assignment.population) & (Device.id == Assignment.device))
        .where(*training, Assignment.state.in_(WITH_DEVICE))
        .order_by(Assignment.updated, Assignment.device)
        .limit(WAITED_FOR)
    )
    return [
        answers.WaitedFor(row.device, row.round, row.state, row.updated, row.closes, online)
        for row, online in session.execute(query)
    ]


def _abandoned(session: Session, run: str) -> answers.Abandoned:
    of_run = (Round.run == run, Round.state == "abandoned")
    query = select(Round).where(*of_run).order_by(Round.number.desc(), Round.attempt.desc()).limit(ABANDONED)
    count = session.scalar(select(func.count()).where(*of_run)) or 0
    return answers.Abandoned(count, [describe_attempt(row) for row in session.scalars(query)])


def _devices(session: Session, run: Run, training: Sequence[Any], policy: RoundPolicy, now: float) -> answers.Available:
    devices = session.scalars(select(Device).where(Device.population == run.population, Device.state != DELETED))
    busy = session.scalars(select(Assignment.device).where(*training, Assignment.state.in_(WITH_DEVICE))).all()
    there = available(policy, [candidate(device) for device in devices], busy, now)
    return answers.Available(len(there.candidates), dict(there.excluded))
