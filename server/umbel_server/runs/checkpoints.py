"""Checkpoints of one run, each committed in one transaction with its contributors and its round; and rounds abandoned."""

import logging
import time
from collections.abc import Callable

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from umbel.errors import UmbelError
from umbel.messages import Blob
from umbel.metrics import finite, results
from umbel.tensors import Tensors, dump
from umbel_server import moments
from umbel_server.rounds.assignments import may_follow
from umbel_server.rounds.events import Abandon
from umbel_server.runs.fleet_run import FleetRun
from umbel_server.runs.port import NewCheckpoint
from umbel_server.storage.database import ASSIGNMENTS, Checkpoint, Round, Run, batches

log = logging.getLogger("umbel.runs")

_MARK = update(ASSIGNMENTS).where(ASSIGNMENTS.c.id == bindparam("of"))


class Checkpoints:
    """Writes the checkpoints of one run; `evaluate` gives held-out metrics of weights, or is None when nothing is held out."""

    def __init__(self, run: FleetRun, evaluate: Callable[[Tensors], dict[str, float]] | None) -> None:
        self._run, self._evaluate = run, evaluate

    def commit(self, checkpoint: NewCheckpoint) -> tuple[Blob, dict[str, float]]:
        """Store the weights and evaluate them; commit checkpoint, contributors, round and the run's progress at once.

        Returns the weights as devices get them, and the held-out metrics.
        """
        began = time.perf_counter()
        data = dump(checkpoint.weights)
        weights = self._run.fleet.blobs.put(data, durable=True)
        strategy = None
        if checkpoint.strategy:
            strategy = self._run.fleet.blobs.put(dump(checkpoint.strategy), durable=True)
        metrics = finite(self._evaluate(checkpoint.weights)) if self._evaluate is not None else {}
        fleet = finite(results(self._run.plan.manifest.metrics, checkpoint.fleet_sums)) if checkpoint.fleet_sums else {}
        now = self._run.now
        with self._run.fleet.database.transaction() as session:
            session.add(
                Checkpoint(
                    run=self._run.id,
                    round=checkpoint.number,
                    weights=weights.sha256,
                    strategy=strategy.sha256 if strategy is not None else None,
                    metrics=metrics,
                    fleet_metrics=fleet,
                    contributors=len(checkpoint.contributors),
                    started=checkpoint.opened,
                    committed=now,
                )
            )
            self._run.fleet.ownership.claim(
                session, self._run.population, weights, *([strategy] if strategy is not None else [])
            )
            folded = self._mark_contributors(session, checkpoint, now)
            opened = session.get(Round, (self._run.id, checkpoint.number, checkpoint.attempt))
            if opened is not None:
                opened.state, opened.closed = "committed", now
                opened.seconds = {**checkpoint.seconds, "commit": time.perf_counter() - began}
            run = session.get_one(Run, self._run.id)
            run.round, run.updated = checkpoint.number, now
            session.flush()
            if checkpoint.number:
                moments.reached("committing")
        self._run.fleet.received_blobs.remove_soon(folded)
        log.info("run %s round %d committed: %s", self._run.id, checkpoint.number, metrics or fleet)
        return Blob.of(data), metrics

    def _mark_contributors(self, session: Session, checkpoint: NewCheckpoint, now: float) -> list[str]:
        """Give the assignments that a checkpoint is made of their final state; returns their commands."""
        commands = []
        for some in batches([id for id, _ in checkpoint.contributors]):
            rows = select(*ASSIGNMENTS.c["id", "state", "command"]).where(ASSIGNMENTS.c.id.in_(some)).with_for_update()
            for row in session.execute(rows):
                if not may_follow(row.state, "folded"):
                    raise UmbelError(f"assignment {row.id} is {row.state}, it cannot be folded into a checkpoint")
                commands.append(row.command)
        if len(commands) != len(checkpoint.contributors):
            raise UmbelError(
                f"{len(checkpoint.contributors)} assignments contribute to checkpoint {checkpoint.number}, "
                f"{len(commands)} of them are known"
            )
        final = {"state": "folded", "folded_into": checkpoint.number, "updated": now}
        if checkpoint.contributors:
            session.execute(_MARK, [{"of": id, "weight": weight, **final} for id, weight in checkpoint.contributors])
        return commands

    def abandon(self, abandon: Abandon, quorum: int) -> None:
        """Note that an attempt at a round is abandoned. An attempt that never found enough devices is added to the table first."""
        now = self._run.now
        with self._run.fleet.database.transaction() as session:
            row = session.get(Round, (self._run.id, abandon.number, abandon.attempt))
            if row is None:
                row = Round(
                    run=self._run.id,
                    number=abandon.number,
                    attempt=abandon.attempt,
                    opened=now,
                    closes=now,
                    wanted=0,
                    quorum=quorum,
                )
                session.add(row)
            row.state, row.reason, row.closed = "abandoned", abandon.reason, now
