"""A run's journal in the server's database: one transaction commits a checkpoint and folds its updates."""

import logging
from collections.abc import Callable

from sqlalchemy import select, update

from umbel.metrics import results
from umbel.plan import Plan
from umbel.tensors import Tensors, dump, load
from umbel_server import moments
from umbel_server.blobs import Blobs
from umbel_server.database import Assignment, Checkpoint, Database, Run
from umbel_server.round_loop import Commit, Start

log = logging.getLogger("umbel.runs")


class RunJournal:
    """The journal of one run; `evaluate` gives held-out metrics of weights, or is None when nothing is held out."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        run: str,
        plan: Plan,
        evaluate: Callable[[Tensors], dict[str, float]] | None,
        interrupted: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._database, self._blobs, self._run, self._plan = database, blobs, run, plan
        self._evaluate, self._interrupted, self._clock = evaluate, interrupted, clock

    def start(self) -> Start:
        """The newest checkpoint; a new run commits the plan's initial weights as round 0 first."""
        query = select(Checkpoint).where(Checkpoint.run == self._run).order_by(Checkpoint.round.desc()).limit(1)
        with self._database.transaction() as session:
            newest = session.scalars(query).one_or_none()
        if newest is None:
            weights = self._plan.initial_weights()
            self.committed(Commit(0, weights, {}, {}, 0, self._clock()))
            return Start(0, weights, {})
        strategy = load(self._blobs.get(newest.strategy)) if newest.strategy else {}
        return Start(newest.round, load(self._blobs.get(newest.weights)), strategy)

    def should_stop(self) -> bool:
        """Whether an administrator stopped the run, or the server is leaving."""
        return self._interrupted()

    def abandoned(self, round: int, reason: str) -> None:
        """Reject the updates of a round that is not aggregated, so that no later commit counts them as folded."""
        with self._database.transaction() as session:
            session.execute(
                update(Assignment)
                .where(Assignment.run == self._run, Assignment.round == round, Assignment.state == "uploaded")
                .values(state="rejected", reason=f"the round was abandoned: {reason}", updated=self._clock())
            )

    def committed(self, commit: Commit) -> dict[str, float]:
        """Store the weights, evaluate them, and commit the round: checkpoint, folded assignments, the run's progress."""
        _reached("folded", commit)
        weights = self._blobs.put(dump(commit.weights))
        strategy = self._blobs.put(dump(commit.strategy)).sha256 if commit.strategy else None
        metrics = self._evaluate(commit.weights) if self._evaluate is not None else {}
        fleet = results(self._plan.manifest.metrics, commit.fleet_sums) if commit.fleet_sums else {}
        now = self._clock()
        with self._database.transaction() as session:
            session.add(
                Checkpoint(
                    run=self._run,
                    round=commit.round,
                    weights=weights.sha256,
                    strategy=strategy,
                    metrics=metrics,
                    fleet_metrics=fleet,
                    contributors=commit.contributors,
                    started=commit.started,
                    committed=now,
                )
            )
            session.execute(
                update(Assignment)
                .where(Assignment.run == self._run, Assignment.round == commit.round, Assignment.state == "uploaded")
                .values(state="folded", updated=now)
            )
            run = session.get_one(Run, self._run)
            run.round, run.updated = commit.round, now
            session.flush()
            _reached("committing", commit)
        _reached("committed", commit)
        log.info("run %s round %d committed: %s", self._run, commit.round, metrics or fleet)
        return metrics


def _reached(moment: str, commit: Commit) -> None:
    if commit.round:  # round 0 is the plan's weights: nobody trained it
        moments.reached(moment)
