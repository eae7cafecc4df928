"""What a simulation counts adds up."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.virtual_fleet import EVEN, VirtualRun
from umbel_server.rounds.policy import RoundPolicy
from umbel_sim.simulation.tally import ENDS
from umbel_sim.virtual.availability import Diurnal

KIND = replace(EVEN, spread=0.6, drop_out=0.15, download=1e4, upload=1e3, training_watts=3.0, network_watts=2.0)


@pytest.mark.parametrize(
    "policy",
    [
        RoundPolicy(target=6, over_selection=1.5, deadline=20.0),
        RoundPolicy(target=8, over_selection=1.0, deadline=11.5, quorum=2, late="fold"),
        RoundPolicy(mode="async", buffer=4, concurrency=8, deadline=1000.0),
    ],
)
def test_what_is_offered_ends_once(tmp_path: Path, policy: RoundPolicy) -> None:
    run = VirtualRun(tmp_path, 20, KIND, policy, Diurnal(2))
    run.run(8)
    rows = run.rows[1:]
    offered = sum(row["offered"] for row in rows)
    ended = sum(row[state] for row in rows for state in ENDS)
    snapshot = run.journal.snapshot()
    assert snapshot is not None
    assert offered == snapshot.made == ended + len(snapshot.work)
    assert run.tally.participation.sum() == sum(row["folded"] for row in rows)
    assert sum(row["trained_seconds"] for row in rows) >= sum(row["wasted_seconds"] for row in rows)


def test_a_rows_figures_are_those_of_its_devices(tmp_path: Path) -> None:
    kind = replace(KIND, spread=0.0, drop_out=0.0)
    run = VirtualRun(tmp_path, 5, kind)
    run.run(2)
    size = sum(weight.nbytes for weight in run.plan.initial_weights().values())
    for row in run.rows[1:]:
        assert (row["bytes_down"], row["bytes_up"]) == (5 * size, 5 * size)
        assert row["trained_seconds"] == pytest.approx(50.0)
        assert row["wasted_seconds"] == 0
        assert row["joules"] == pytest.approx(5 * (10 * 3.0 + (size / 1e4 + size / 1e3) * 2.0))
        assert row["round_seconds"] == pytest.approx(11.0 + size / 1e4 + size / 1e3)
        assert row["train_loss"] == pytest.approx(1.0)
    assert run.port.cost().bytes == 20 * size
    assert run.port.cost().hours == pytest.approx(run.rows[-1]["virtual_hours"])


def test_attempts_without_a_checkpoint_are_told_in_the_rounds_row(tmp_path: Path) -> None:
    policy = RoundPolicy(over_selection=1.0, quorum=5, deadline=20.0, attempts=100, backoff=5.0)
    run = VirtualRun(tmp_path, 5, replace(KIND, spread=0.0, drop_out=0.2), policy)
    run.run(3)
    rows = run.rows[1:]
    assert sum(row["attempts"] for row in rows) > 3
    for row in rows:
        assert row["folded"] == 5
        assert row["offered"] == 5 * row["attempts"]
        assert row["abandoned"].count("the quorum is 5") == row["attempts"] - 1
        assert (row["round_seconds"] > 20) == (row["attempts"] > 1)
