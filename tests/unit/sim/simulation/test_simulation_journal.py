"""What a simulation remembers, and goes on from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.virtual_fleet import EVEN, VirtualRun, same_bytes
from umbel.errors import UmbelError
from umbel.tensors import Tensors
from umbel_server.rounds.policy import RoundPolicy
from umbel_sim.simulation import journal
from umbel_sim.simulation.journal import FILE, Row
from umbel_sim.virtual.availability import Diurnal

SPREAD = replace(EVEN, spread=0.6, drop_out=0.1)
POLICIES = {
    "sync": RoundPolicy(target=6, over_selection=1.5, deadline=30.0),
    "fold": RoundPolicy(target=8, over_selection=1.0, deadline=11.5, quorum=2, late="fold"),
    "async": RoundPolicy(mode="async", buffer=4, concurrency=8, deadline=1000.0),
    "least-recent": RoundPolicy(target=6, over_selection=1.5, deadline=30.0, select="least-recent", minimum_gap=20.0),
}
ROUNDS = 6


class Stopped(BaseException):
    """As a KeyboardInterrupt is, but no test runner listens to it."""


def stop_at(number: int) -> Callable[[Row], None]:
    def told(row: Row) -> None:
        if row["round"] == number:
            raise Stopped

    return told


def make(folder: Path, saved: Path, policy: RoundPolicy, **more: object) -> VirtualRun:
    return VirtualRun(folder, 20, SPREAD, policy, Diurnal(1), saved=saved, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("at", [0, 1, 4, ROUNDS])
def test_what_was_interrupted_goes_on_to_the_same_bytes(tmp_path: Path, name: str, at: int) -> None:
    whole = make(tmp_path, tmp_path / "whole", POLICIES[name])
    whole.run(ROUNDS)
    first = make(tmp_path, tmp_path / "parts", POLICIES[name], told=stop_at(at))
    with pytest.raises(Stopped):
        first.run(ROUNDS)
    first.journal.save()
    second = make(tmp_path, tmp_path / "parts", POLICIES[name])
    second.run(ROUNDS)
    assert second.rows == whole.rows
    assert same_bytes(second.weights, whole.weights)
    assert second.tally.participation.tolist() == whole.tally.participation.tolist()
    assert second.tally.bytes == sum(row.get("bytes_down", 0) + row.get("bytes_up", 0) for row in whole.rows)


@pytest.mark.parametrize("strategy", ["fedadam", "fedavgm", "krum"])
def test_a_strategys_memory_goes_on_too(tmp_path: Path, strategy: str) -> None:
    whole = make(tmp_path, tmp_path / "whole", POLICIES["sync"])
    whole.run(ROUNDS, strategy)
    first = make(tmp_path, tmp_path / "parts", POLICIES["sync"], told=stop_at(3))
    with pytest.raises(Stopped):
        first.run(ROUNDS, strategy)
    first.journal.save()
    second = make(tmp_path, tmp_path / "parts", POLICIES["sync"])
    second.run(ROUNDS, strategy)
    assert same_bytes(second.weights, whole.weights)


def test_an_interruption_while_a_checkpoint_is_evaluated_counts_nothing_twice(tmp_path: Path) -> None:
    def interrupted(weights: Tensors) -> dict[str, float]:
        nonlocal evaluations
        evaluations += 1
        if evaluations == 4:
            raise Stopped
        return {"accuracy": 0.5}

    evaluations = 0
    policy = POLICIES["sync"]
    first = make(tmp_path, tmp_path / "parts", policy, evaluate=interrupted)
    with pytest.raises(Stopped):
        first.run(ROUNDS)
    first.journal.save()
    second = make(tmp_path, tmp_path / "parts", policy)
    assert [row["round"] for row in second.rows] == [0, 1, 2]
    second.run(ROUNDS)
    assert second.tally.participation.sum() == sum(row.get("folded", 0) for row in second.rows)


def test_a_simulation_that_has_ended_goes_on_when_more_rounds_are_asked_for(tmp_path: Path) -> None:
    for name, policy in POLICIES.items():
        make(tmp_path, tmp_path / name, policy, evaluate=lambda weights: {}).run(3)
        whole = make(tmp_path, tmp_path / f"{name}-whole", policy)
        whole.run(ROUNDS)
        short = make(tmp_path, tmp_path / f"{name}-parts", policy)
        short.run(3)
        short.journal.save()
        longer = make(tmp_path, tmp_path / f"{name}-parts", policy)
        longer.run(ROUNDS)
        assert same_bytes(longer.weights, whole.weights), name
        assert [row["round"] for row in longer.rows] == list(range(ROUNDS + 1))
        longer.journal.save()
        again = make(tmp_path, tmp_path / f"{name}-parts", policy)
        again.run(ROUNDS)
        assert again.engine.begun == []
        assert again.rows == longer.rows


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    run = make(tmp_path, tmp_path / "taken", POLICIES["sync"])
    with pytest.raises(UmbelError, match="the checkpoint cannot be written"):
        run.run(ROUNDS)
    assert run.engine.begun == []


def test_another_simulations_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    run = make(tmp_path, tmp_path / "mine", POLICIES["sync"])
    run.run(2)
    run.journal.save()
    before = (tmp_path / "mine" / FILE).read_bytes()
    with pytest.raises(UmbelError, match=r"holds another simulation .* name another output folder, or remove it"):
        make(tmp_path, tmp_path / "mine", POLICIES["sync"], identity="other")
    assert (tmp_path / "mine" / FILE).read_bytes() == before


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    run = make(tmp_path, tmp_path / "mine", POLICIES["sync"])
    run.run(2)
    run.journal.save()
    path = tmp_path / "mine" / FILE
    good = path.read_bytes()
    middle = len(good) // 2
    flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    for bad in (b"", good[:10], good[:-1], good + b"x", flipped, b"\0" * len(good)):
        path.write_bytes(bad)
        with pytest.raises(UmbelError, match="expected a simulation's checkpoint, could not read one") as caught:
            make(tmp_path, tmp_path / "mine", POLICIES["sync"])
        assert "\n" not in str(caught.value)
    path.write_bytes(good)
    assert make(tmp_path, tmp_path / "mine", POLICIES["sync"]).rows == run.rows


def test_a_write_that_is_cut_short_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path, tmp_path / "mine", POLICIES["sync"])
    run.run(2)
    run.journal.save()

    def full(self: int, other: int) -> None:
        raise OSError(28, "No space left on device")

    longer = make(tmp_path, tmp_path / "mine", POLICIES["sync"])
    longer.run(3)
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UmbelError, match=r"the checkpoint cannot be written: No space left on device"):
        longer.journal.save()
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [FILE]
    assert make(tmp_path, tmp_path / "mine", POLICIES["sync"]).rows == run.rows


def test_checkpoints_are_saved_as_time_passes_with_what_devices_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SAVE_SECONDS", -1.0)
    policy = replace_policy(POLICIES["sync"], evaluate=2)
    run = make(tmp_path, tmp_path / "mine", policy, told=stop_at(5))
    with pytest.raises(Stopped):
        run.run(ROUNDS)
    killed = make(tmp_path, tmp_path / "mine", policy)  # nothing was saved on the way out
    assert [row["round"] for row in killed.rows] == [0, 1, 2, 3, 4]
    assert all("device_loss" in row for row in killed.rows[1:])


def replace_policy(policy: RoundPolicy, **changes: int) -> RoundPolicy:
    import msgspec

    return msgspec.structs.replace(policy, **changes)
