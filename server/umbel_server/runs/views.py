"""Runs as the API shows them; times in Unix seconds."""

from collections.abc import Sequence

from msgspec.structs import asdict
from sqlalchemy import func, select

from umbel.metrics import MetricSpec
from umbel_server import answers
from umbel_server.aggregation.device_metrics import average
from umbel_server.storage.database import Assignment, Checkpoint, Database, Round, Run


def show(database: Database, run: Run, metrics: Sequence[MetricSpec], round: int | None = None) -> answers.RunDetails:
    """A run with all its checkpoints, and of one round (default: the newest) the attempts and assignments."""
    with database.transaction() as session:
        checkpoints = session.scalars(
            select(Checkpoint).where(Checkpoint.run == run.id).order_by(Checkpoint.round)
        ).all()
        newest = session.scalar(select(func.max(Round.number)).where(Round.run == run.id)) or 0
        number = newest if round is None else round
        attempts = session.scalars(
            select(Round).where(Round.run == run.id, Round.number == number).order_by(Round.attempt)
        ).all()
        assignments = session.scalars(
            select(Assignment)
            .where(Assignment.run == run.id, Assignment.round == number)
            .order_by(Assignment.attempt, Assignment.device)
        ).all()
        evaluations = session.scalars(
            select(Assignment).where(
                Assignment.run == run.id, Assignment.kind == "evaluate", Assignment.state == "folded"
            )
        ).all()
        total = select(func.sum(Assignment.bytes_down), func.sum(Assignment.bytes_up))
        # PostgreSQL's sums are Decimals, which would be strings in JSON.
        down, up = (int(value or 0) for value in session.execute(total.where(Assignment.run == run.id)).one())
    return answers.RunDetails(
        **asdict(describe(run)),
        bytes_down=down,
        bytes_up=up,
        checkpoints=[_evaluated(checkpoint, evaluations, metrics) for checkpoint in checkpoints],
        attempts=[describe_attempt(attempt) for attempt in attempts],
        assignments=[describe_assignment(assignment) for assignment in assignments],
    )


def _evaluated(
    checkpoint: Checkpoint, evaluations: Sequence[Assignment], metrics: Sequence[MetricSpec]
) -> answers.EvaluatedCheckpoint:
    """A checkpoint with the metrics that devices measured on their examples."""
    of_round = [(row.device, row.metrics, float(row.examples)) for row in evaluations if row.round == checkpoint.round]
    means, count = average(of_round, metrics) if of_round else ({}, 0)
    return answers.EvaluatedCheckpoint(**asdict(describe_checkpoint(checkpoint)), evaluated=means, evaluators=count)


def describe(run: Run) -> answers.Run:
    """A run without its rounds."""
    return answers.Run(
        id=run.id,
        population=run.population,
        task=run.task,
        plan=run.plan,
        state=run.state,
        reason=run.reason,
        round=run.round,
        rounds=run.settings.get("rounds", 0),
        strategy=run.settings.get("strategy", ""),
        settings=run.settings,
        created=run.created,
        updated=run.updated,
    )


def describe_checkpoint(checkpoint: Checkpoint) -> answers.Checkpoint:
    """A checkpoint."""
    return answers.Checkpoint(
        round=checkpoint.round,
        weights=checkpoint.weights,
        metrics=checkpoint.metrics,
        fleet_metrics=checkpoint.fleet_metrics,
        contributors=checkpoint.contributors,
        started=checkpoint.started,
        committed=checkpoint.committed,
    )


def describe_attempt(attempt: Round) -> answers.Attempt:
    """An attempt at a round."""
    return answers.Attempt(
        round=attempt.number,
        attempt=attempt.attempt,
        state=attempt.state,
        reason=attempt.reason,
        opened=attempt.opened,
        closes=attempt.closes,
        closed=attempt.closed,
        wanted=attempt.wanted,
        quorum=attempt.quorum,
        seconds=attempt.seconds,
    )


def describe_assignment(assignment: Assignment) -> answers.Assignment:
    """An assignment, and what came of it."""
    return answers.Assignment(
        id=assignment.id,
        device=assignment.device,
        round=assignment.round,
        kind=assignment.kind,
        state=assignment.state,
        reason=assignment.reason,
        examples=assignment.examples,
        seconds=assignment.seconds,
        metrics=assignment.metrics,
        since=assignment.updated,
        offered=assignment.offered,
        closes=assignment.closes,
        attempt=assignment.attempt,
        weight=assignment.weight,
        folded_into=assignment.folded_into,
        bytes_down=assignment.bytes_down,
        bytes_up=assignment.bytes_up,
    )
