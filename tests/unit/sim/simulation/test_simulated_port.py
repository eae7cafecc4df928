"""Rounds on virtual devices whose training is made up: what happens, and at which virtual second."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.virtual_fleet import EVEN, NumbersEngine, VirtualRun, fate, same_bytes
from umbel.conditions import Rules
from umbel.errors import UmbelError
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.runs.settings import RunSettings
from umbel_sim.engines import Job
from umbel_sim.simulation.simulated_port import Untrained
from umbel_sim.virtual.availability import DAY, HOUR, Condition, Diurnal
from umbel_sim.virtual.classes import Mix

SPREAD = replace(EVEN, spread=0.6)
ASYNC = RoundPolicy(mode="async", buffer=4, concurrency=8, deadline=1000.0)


def total(run: VirtualRun, name: str) -> float:
    return sum(row.get(name, 0) for row in run.rows)


def test_a_round_takes_what_its_devices_take(tmp_path: Path) -> None:
    run = VirtualRun(tmp_path)
    end = run.run(3)
    assert end is not None
    assert (end.state, end.reason) == ("finished", "its last round is committed")
    assert [row["round"] for row in run.rows] == [0, 1, 2, 3]
    for row in run.rows[1:]:
        assert row["round_seconds"] == pytest.approx(fate(), abs=1e-4)
        assert (row["folded"], row["offered"], row["attempts"]) == (10, 10, 1)
    assert run.tally.participation.tolist() == [3] * 10


@pytest.mark.parametrize("policy", [RoundPolicy(over_selection=1.5, target=6, deadline=12.0), ASYNC])
def test_time_only_goes_forward(tmp_path: Path, policy: RoundPolicy) -> None:
    run = VirtualRun(tmp_path, 20, replace(SPREAD, drop_out=0.2), policy, Diurnal(3))
    run.run(6)
    assert run.port.times == sorted(run.port.times)
    hours = [row["virtual_hours"] for row in run.rows]
    assert hours == sorted(hours)


def test_the_same_seed_gives_the_same_run_and_another_one_another(tmp_path: Path) -> None:
    runs = [VirtualRun(tmp_path, 30, SPREAD, RoundPolicy(target=5, deadline=100.0), seed=seed) for seed in (1, 1, 2)]
    for run in runs:
        run.run(4)
    assert runs[0].rows == runs[1].rows
    assert same_bytes(runs[0].weights, runs[1].weights)
    assert runs[0].rows != runs[2].rows


def test_who_is_asked_too_much_is_cancelled_and_not_trained(tmp_path: Path) -> None:
    policy = RoundPolicy(target=5, over_selection=2.0, deadline=1000.0)
    run = VirtualRun(tmp_path, 30, SPREAD, policy)
    run.run(4)
    for row in run.rows[1:]:
        assert (row["folded"], row["offered"]) == (5, 10)
    assert total(run, "cancelled") == 15  # those of the last round are cancelled when the run has ended
    assert len(run.engine.begun) == 20
    assert total(run, "wasted_seconds") > 0
    assert total(run, "bytes_up") == 20 * run.plan.initial_weights()["z/kernel"].nbytes * 68 // 48


def test_who_is_late_expires_and_the_quorum_commits(tmp_path: Path) -> None:
    policy = RoundPolicy(over_selection=1.0, deadline=fate() * 1.05, quorum=2)
    run = VirtualRun(tmp_path, 20, SPREAD, policy)
    run.run(3)
    for row in run.rows[1:]:
        assert row["round_seconds"] == pytest.approx(policy.deadline)
        assert row["folded"] + row["expired"] == 20
        assert 5 <= row["expired"] <= 15


def test_a_late_update_is_folded_into_a_later_checkpoint(tmp_path: Path) -> None:
    policy = RoundPolicy(over_selection=1.0, target=10, deadline=fate() * 1.05, quorum=2, late="fold")
    run = VirtualRun(tmp_path, 20, SPREAD, policy)
    run.run(5)
    dropping = VirtualRun(
        tmp_path, 20, SPREAD, RoundPolicy(over_selection=1.0, target=10, deadline=fate() * 1.05, quorum=2)
    )
    dropping.run(5)
    assert total(run, "expired") == 0 < total(dropping, "expired")
    assert total(run, "folded") > total(dropping, "folded")


def test_asynchronous_devices_train_all_the_time(tmp_path: Path) -> None:
    run = VirtualRun(tmp_path, 20, SPREAD, ASYNC)
    end = run.run(6)
    assert end is not None
    assert end.state == "finished"
    assert [row["folded"] for row in run.rows[1:]] == [4] * 6
    assert total(run, "offered") == 8 + 6 * 4
    assert run.rows[-1]["virtual_hours"] * 3600 < 6 * fate()


def test_more_asynchronous_work_than_devices_costs_no_time(tmp_path: Path) -> None:
    """Rounds of hours whose places are not all taken: what is free is not looked for five times a second."""
    policy = RoundPolicy(mode="async", buffer=4, concurrency=100, deadline=DAY)
    run = VirtualRun(tmp_path, 5, replace(SPREAD, seconds_per_step=600.0), policy)
    began = time.perf_counter()
    run.run(5)
    assert time.perf_counter() - began < 1.0
    assert len(run.port.times) < 100


def test_a_device_that_declines_fetches_nothing(tmp_path: Path) -> None:
    away = _Until(0.2, Condition(), Condition(charging=False))
    policy = RoundPolicy(over_selection=1.0, deadline=100.0, requires=Rules(charging=True), attempts=1)
    run = VirtualRun(tmp_path, 5, availability=away, policy=policy)
    end = run.run(1)
    assert end is not None
    assert end.state == "paused"
    assert "0 updates came, the quorum is 1; device-4 declined: not charging" in end.reason
    assert run.tally.bytes == 0


def test_availability_that_ends_forever_is_told_and_does_not_hang(tmp_path: Path) -> None:
    class Gone(_Until):
        def __init__(self) -> None:
            super().__init__(20.0, Condition(), Condition(online=False))

    policy = RoundPolicy(over_selection=1.0, deadline=DAY, quorum=3, attempts=5)
    run = VirtualRun(tmp_path, 10, availability=Gone(), policy=policy)
    began = time.perf_counter()
    end = run.run(3)
    assert time.perf_counter() - began < 1.0
    assert end is not None
    assert end.state == "paused"
    assert "round 2 was abandoned 5 times in a row" in end.reason
    assert "1" in end.reason
    assert "10 offline" in end.reason


def test_devices_that_come_back_are_found_at_that_second(tmp_path: Path) -> None:
    back = _Until(30 * HOUR + 7, Condition(online=False), Condition())
    run = VirtualRun(tmp_path, 10, availability=back, policy=RoundPolicy(over_selection=1.0, deadline=60 * HOUR))
    run.run(1)
    assert run.rows[1]["virtual_hours"] * 3600 == pytest.approx(30 * HOUR + 7 + fate(), abs=1e-3)
    assert len(run.port.times) < 50


def test_a_rest_between_assignments_is_kept(tmp_path: Path) -> None:
    policy = RoundPolicy(over_selection=1.0, target=4, quorum=4, deadline=DAY, minimum_gap=5000.0)
    run = VirtualRun(tmp_path, 8, policy=policy)
    run.run(6)
    assert run.tally.participation.tolist() == [3] * 8
    assert run.rows[-1]["virtual_hours"] * 3600 == pytest.approx(2 * 5000 + 2 * fate(), rel=0.01)
    assert len(run.port.times) < 200


@pytest.mark.parametrize("gap", [0.1, 33.3, 1e-3, 7777.7])
def test_a_rest_ends_however_its_seconds_are_rounded(tmp_path: Path, gap: float) -> None:
    policy = RoundPolicy(over_selection=1.0, target=4, quorum=4, deadline=DAY, minimum_gap=fate() + gap)
    run = VirtualRun(tmp_path, 4, replace(EVEN, latency=0.1), policy)
    run.run(10)
    assert run.rows[-1]["virtual_hours"] * 3600 < 10 * (policy.minimum_gap + fate())


def test_a_round_finds_the_devices_that_have_its_labels(tmp_path: Path) -> None:
    """A list of random devices is no list of those that a round can have."""
    kinds = Mix((EVEN, replace(EVEN, name="rare")), (0.95, 0.05))
    policy = RoundPolicy(over_selection=1.0, target=10, deadline=DAY, labels={"class": "rare"})
    run = VirtualRun(tmp_path, 1000, policy=policy, kinds=kinds)
    run.run(3)
    assert [row["folded"] for row in run.rows[1:]] == [10, 10, 10]


def test_a_shortlist_is_a_uniform_choice(tmp_path: Path) -> None:
    """Chi-square over devices of which half are there: 49 degrees of freedom, mean 49, sigma 9.9."""
    run = VirtualRun(
        tmp_path, 100, availability=_Odd(), policy=RoundPolicy(target=5, over_selection=1.0, deadline=100.0)
    )
    run.port.start(RunSettings(rounds=1, policy=run.policy))
    counts: Counter[int] = Counter()
    for look in range(2000):
        run.port.now = float(look)
        found = run.port.candidates()
        assert len(found) == 5
        counts.update(int(candidate.device.partition("-")[2]) for candidate in found)
    assert all(device % 2 for device in counts)
    expected = 2000 * 5 / 50
    chi_square = sum((counts[device] - expected) ** 2 / expected for device in range(1, 100, 2))
    assert 19 < chi_square < 79


def test_a_hundred_thousand_devices_cost_no_scan(tmp_path: Path) -> None:
    asked = _Counted()
    run = VirtualRun(tmp_path, 100_000, availability=asked, policy=RoundPolicy(target=10, deadline=100.0))
    began = time.perf_counter()
    run.run(10)
    assert time.perf_counter() - began < 2.0
    assert asked.calls < 2000
    assert total(run, "folded") == 100


def test_all_of_many_devices_are_offered_work_when_all_are_wanted(tmp_path: Path) -> None:
    run = VirtualRun(tmp_path, 300)
    run.run(1)
    assert run.rows[1]["folded"] == 300


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
@pytest.mark.parametrize("device", ["device-0", "device-4", "device-9"])
def test_a_loss_that_is_not_a_number_ends_the_run_with_round_and_device(
    tmp_path: Path, loss: float, device: str
) -> None:
    def bad(job: Job) -> float:
        return loss if job.name == device and job.how.round == 2 else 1.0

    run = VirtualRun(tmp_path, engine=NumbersEngine(bad))
    with pytest.raises(Untrained) as caught:
        run.run(5)
    assert f"round 2: the loss of {device} is {loss}" in str(caught.value)
    assert "lower the learning rate (0.25) or look at its 10 examples" in str(caught.value)
    assert run.rows[-1]["round"] == 1


def test_the_sum_is_the_mean_of_the_updates(tmp_path: Path) -> None:
    run = VirtualRun(tmp_path, 4)
    run.run(1)
    start = run.plan.initial_weights()
    for name, weight in start.items():
        deltas = []
        for device in range(4):
            rng = np.random.default_rng([device, 1])
            drawn = {key: rng.normal(0, 0.1, value.shape).astype(np.float32) for key, value in start.items()}
            deltas.append(drawn[name])
        np.testing.assert_allclose(run.weights[name], weight + np.mean(deltas, 0), rtol=1e-6, atol=1e-7)


def test_devices_evaluate_checkpoints_in_turn(tmp_path: Path) -> None:
    run = VirtualRun(tmp_path, policy=RoundPolicy(over_selection=1.0, deadline=100.0, evaluate=3))
    run.run(2)
    assert [row["device_loss"] for row in run.rows[1:]] == [1.0, 1.0]


def test_the_most_examples_and_the_least_recent_are_chosen_over_all_devices(tmp_path: Path) -> None:
    policy = RoundPolicy(over_selection=1.0, target=5, deadline=100.0, select="least-recent")
    run = VirtualRun(tmp_path, 20, policy=policy)
    run.run(4)
    assert run.tally.participation.tolist() == [1] * 20


def test_a_node_that_is_none_is_refused(tmp_path: Path) -> None:
    run = VirtualRun(tmp_path, 7)
    assert [run.port.name(run.port.node(f"device-{device}")) for device in range(7)] == [
        f"device-{d}" for d in range(7)
    ]
    for node in (0, 8, -1):
        with pytest.raises(UmbelError, match="1 to 7"):
            run.port.name(node)


class _Until:
    """One condition until a time, another one ever after."""

    def __init__(self, until: float, before: Condition, after: Condition) -> None:
        self._before, self._after = replace(before, until=until), after

    def at(self, device: int, time: float) -> Condition:
        return self._before if time < self._before.until else self._after


class _Odd:
    """Devices with odd numbers are online."""

    def at(self, device: int, time: float) -> Condition:
        return Condition(online=device % 2 == 1)


class _Counted:
    """All devices are online; how often they were asked."""

    calls = 0

    def at(self, device: int, time: float) -> Condition:
        self.calls += 1
        return Condition()
