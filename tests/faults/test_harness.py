"""The harness itself: a run without a fault breaks nothing, and none of the checks is blind."""

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.faults.case import OPTIONS, ROUNDS, Case, Plans, execute
from tests.faults.fleet import DEVICES, Fleet
from tests.faults.invariants import Expected, broken, weights_at
from tests.faults.matrix import compile_plans
from tests.faults.moments import MOMENTS, RANDOM, Moments, When
from tests.faults.mqtt_proxy import length_of, without_acknowledgement
from umbel.plan import Plan
from umbel_server.moments import VARIABLE, reached

A_FOLDED = "(SELECT id FROM assignments WHERE state = 'folded' AND round = 2 ORDER BY id LIMIT 1)"
LAST_FOLDED = "(SELECT id FROM assignments WHERE state = 'folded' AND round = 2 ORDER BY id DESC LIMIT 1)"


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    return compile_plans(tmp_path_factory.mktemp("plans"))


@pytest.fixture(scope="module")
def good_run(plans: Plans, tmp_path_factory: pytest.TempPathFactory) -> Path:
    case = Case("none", "uploaded", "embedded", "fedadam", 1, "everybody")
    outcome = execute(case, plans, tmp_path_factory.mktemp("kept"), keep_all=True)
    assert outcome.wrong == []
    assert outcome.folder is not None
    return outcome.folder


def found(folder: Path, good_run: Path, plans: Plans, *statements: str, ledger: bool = False) -> list[str]:
    """What the checks say of a good run after somebody changed what it left."""
    shutil.copytree(good_run, folder, dirs_exist_ok=True)
    fleet = Fleet(folder, "embedded", folder / "moments")
    database = sqlite3.connect(fleet.database, isolation_level=None)
    database.execute("DROP TRIGGER fault_test_transitions_trigger")
    for statement in statements:
        database.execute(statement)
    ((run, size),) = database.execute(
        "SELECT run, (SELECT count(*) FROM assignments WHERE kind = 'train') FROM checkpoints LIMIT 1"
    ).fetchall()
    assert size == ROUNDS * DEVICES
    database.close()
    if ledger:
        path = fleet.hosts[0].ledger
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*lines, lines[0]]))
    weights = min(
        (Plan.open(path).initial_weights() for path in (plans.inline, plans.uploaded)),
        key=lambda weights: weights.keys() != _names(fleet, run),
    )
    return broken(fleet, run, Expected(ROUNDS, "fedadam", OPTIONS["fedadam"], weights, keeps_all=True))


def _names(fleet: Fleet, run: str) -> set[str]:
    (row,) = fleet.rows("SELECT weights FROM checkpoints WHERE run = ? AND round = 0", run)
    return set(weights_at(fleet, row["weights"]))


@pytest.mark.parametrize(
    ("statements", "sentence"),
    [
        ((), ""),
        (("UPDATE runs SET state = 'failed'",), "the run is failed"),
        (("DELETE FROM checkpoints WHERE round = 2",), "there are checkpoints of rounds"),
        ((f"UPDATE assignments SET state = 'uploaded' WHERE id = {A_FOLDED}",), "is still uploaded"),
        (
            (
                f"UPDATE assignments SET state = 'expired', reason = 'late' WHERE id = {A_FOLDED}",
                "UPDATE checkpoints SET contributors = contributors - 1 WHERE round = 2",
            ),
            "round 2 is not what its 19 updates make",
        ),
        (
            (f"UPDATE assignments SET examples = examples + 1, weight = weight + 1 WHERE id = {A_FOLDED}",),
            "round 2 is not what its 20",
        ),
        (
            (
                f'UPDATE assignments SET "update" = (SELECT "update" FROM assignments WHERE id = {LAST_FOLDED}) '
                f"WHERE id = {A_FOLDED}",
            ),
            "never made the update",
        ),
        (
            (f"INSERT INTO fault_test_transitions VALUES ({A_FOLDED}, 'folded', 'rejected', 0)",),
            "went from folded to rejected",
        ),
        ((f"UPDATE assignments SET state = 'cancelled', reason = 'x' WHERE id = {A_FOLDED}",), "was lost: cancelled"),
        ((f"UPDATE assignments SET folded_into = 3 WHERE id = {A_FOLDED}",), "1 rounds late"),
        (("UPDATE checkpoints SET contributors = 21 WHERE round = 1",), "round 1 has 21 contributors and 20 folded"),
        (
            (
                f"UPDATE commands SET state = 'pending' WHERE id = (SELECT command FROM assignments WHERE id = {A_FOLDED})",
            ),
            "its command still pending",
        ),
    ],
)
@pytest.mark.long
def test_no_check_is_blind(
    tmp_path: Path, good_run: Path, plans: Plans, statements: tuple[str, ...], sentence: str
) -> None:
    sentences = found(tmp_path, good_run, plans, *statements)
    assert any(sentence in text for text in sentences) if sentence else sentences == []


@pytest.mark.long
def test_training_twice_is_seen(tmp_path: Path, good_run: Path, plans: Plans) -> None:
    assert any("2 times in one life" in text for text in found(tmp_path, good_run, plans, ledger=True))


def test_a_moment_is_the_same_for_the_same_seed_and_can_be_come_to() -> None:
    for name in (RANDOM, *MOMENTS):
        drawn = [When.draw(name, ROUNDS, DEVICES, random.Random(seed)) for seed in range(50)]
        assert drawn == [When.draw(name, ROUNDS, DEVICES, random.Random(seed)) for seed in range(50)]
        assert {when.round for when in drawn} == set(range(1, ROUNDS + 1))
        assert all(1 <= when.count <= DEVICES for when in drawn)


def test_the_server_is_held_at_its_moment_and_at_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = Moments(tmp_path / "moments", When("uploaded", 2, 2))
    monkeypatch.setenv(VARIABLE, str(moments.path))
    for name in ("offered", "uploaded", "uploaded", "committed", "offered", "uploaded"):
        reached(name)
        assert not moments.reached.is_set()
    moments.release()  # so that this thread is not held, as the server would be
    reached("uploaded")
    assert moments.reached.is_set()
    moments.stop()
    reached("uploaded")


@pytest.mark.parametrize("size", [1, 126, 127, 128, 16_383, 16_384, 70_000])
def test_a_publish_loses_its_identifier_and_nothing_else(size: int) -> None:
    topic, payload = b"umbel/1/fleet/phone/result", bytes(size)
    body = len(topic).to_bytes(2) + topic + b"\x12\x34" + b"\x00" + payload
    identifier, packet = without_acknowledgement(b"\x33" + length_of(len(body)) + body)
    assert identifier == b"\x12\x34"
    shorter = len(topic).to_bytes(2) + topic + b"\x00" + payload
    assert packet == b"\x31" + length_of(len(shorter)) + shorter
