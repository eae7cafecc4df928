import json
from pathlib import Path

import numpy as np
import pytest

from tests.bare_plan import bare_plan
from tests.memory_grid import weights
from umbel import UmbelError
from umbel.plan import Plan
from umbel.tensors import Tensors, dump
from umbel_server.runs.folder_journal import FolderJournal
from umbel_server.runs.port import NewCheckpoint


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return bare_plan(tmp_path / "bare.plan")


def commit(round: int, strategy: Tensors) -> NewCheckpoint:
    changed = {name: weight + np.float32(round) for name, weight in weights().items()}
    sums = {"loss": 1.0 / round, "accuracy": 0.5}
    return NewCheckpoint(round, 0, changed, strategy, sums, [("a", 1.0), ("b", 2.0)], 1000.0)


def assert_equal(ours: Tensors, expected: Tensors) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value)
        assert ours[name].shape == value.shape


def test_a_new_folder_starts_from_the_plans_weights(plan: Plan, tmp_path: Path) -> None:
    number, first, strategy = FolderJournal(tmp_path / "out", plan).start()
    assert number == 0
    assert strategy == {}
    assert_equal(first, weights())


def test_what_was_committed_is_gone_on_from(plan: Plan, tmp_path: Path) -> None:
    journal = FolderJournal(tmp_path / "out", plan)
    momentum = {"momentum_vector/m/scale": np.asarray(2.0, np.float32)}
    assert journal.committed(commit(1, {})) == {}
    journal.committed(commit(2, momentum))
    number, newest, strategy = FolderJournal(tmp_path / "out", plan).start()
    assert number == 2
    assert_equal(newest, commit(2, {}).weights)
    assert_equal(strategy, momentum)
    assert json.loads((tmp_path / "out" / "rounds.json").read_bytes())[0] == {
        "round": 1,
        "contributors": 2,
        "fleet_metrics": {"loss": 1.0, "accuracy": 0.5},
    }


def test_a_checkpoint_that_was_not_named_is_not_gone_on_from(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    journal = FolderJournal(folder, plan)
    journal.committed(commit(1, {}))
    (folder / "round-002.safetensors").write_bytes(b"half of it")
    (folder / "round-002.strategy").write_bytes(b"half of it")
    assert FolderJournal(folder, plan).start()[0] == 1
    journal.committed(commit(2, {}))
    assert FolderJournal(folder, plan).start()[2] == {}


def test_a_folder_of_another_plan_is_refused(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    FolderJournal(folder, plan).committed(commit(1, {}))
    (folder / "round-001.safetensors").write_bytes(dump({"other": np.zeros(3, np.float32)}))
    with pytest.raises(UmbelError, match=r"round-001.safetensors, to go on from \(another plan needs another output"):
        FolderJournal(folder, plan).start()


@pytest.mark.parametrize("text", ["no json", "7", "[7]", '[{"contributors": 2}]'])
def test_a_damaged_folder_is_one_sentence(plan: Plan, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "rounds.json").write_text(text)
    with pytest.raises(UmbelError, match=r"rounds.json: expected a list of rounds"):
        FolderJournal(folder, plan).start()


def test_a_missing_checkpoint_is_one_sentence(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    FolderJournal(folder, plan).committed(commit(1, {}))
    (folder / "round-001.safetensors").unlink()
    with pytest.raises(UmbelError, match=r"round-001.safetensors is missing"):
        FolderJournal(folder, plan).start()


def test_what_devices_make_of_a_checkpoint_is_kept_with_it(plan: Plan, tmp_path: Path) -> None:
    journal = FolderJournal(tmp_path / "out", plan)
    journal.committed(commit(1, {}))
    journal.evaluated(1, "7", {"loss": 0.5})
    assert json.loads((tmp_path / "out" / "rounds.json").read_bytes())[0]["evaluations"] == {"7": {"loss": 0.5}}
