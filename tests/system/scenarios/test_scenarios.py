"""Every scenario on its small setting shows what it is there to show."""

import importlib.util
import json
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCENARIOS = Path(__file__).parents[3] / "simulations" / "scenarios"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"scenario_{name}", SCENARIOS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(name: str, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """The figures of a scenario's small setting; its picture is drawn too."""
    figures, picture = folder / "figures.json", folder / "picture.png"
    assert script(name).main(["--small", "--json", str(figures), "--plot", str(picture), *arguments]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows: list[dict[str, Any]] = json.loads(figures.read_text())
    return rows


@pytest.mark.long
def test_table_1_gives_rounds_of_every_seed_at_the_best_learning_rate(tmp_path: Path) -> None:
    rows = rows_of("fedavg_table1", tmp_path, "--split", "iid", "--seeds", "2")
    (row,) = rows
    assert row.keys() >= {"split", "fraction", "paper", "rounds", "learning_rate"}
    assert len(row["rounds"]) == 2
    assert statistics.median(row["rounds"]) <= 2 * row["paper"]
    reached = {float(rate): rounds for rate, rounds in row["tried"].items() if rounds is not None}
    assert row["learning_rate"] == min(reached, key=lambda rate: reached[rate])
    assert row["rounds"][0] == reached[row["learning_rate"]]


def test_table_1_keeps_the_cells_that_it_has(tmp_path: Path) -> None:
    kept = [{"split": "iid", "fraction": 0.2, "paper": 20, "rounds": [7], "learning_rate": 0.1}]
    (tmp_path / "figures.json").write_text(json.dumps(kept))
    assert rows_of("fedavg_table1", tmp_path, "--split", "iid", "--resume") == kept


def test_table_1_knows_its_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rows_of("fedavg_table1", tmp_path, "--fraction", "0.3")
    assert "there is no such cell; there are iid 0.2, noniid 0.2" in capsys.readouterr().err


def test_stragglers_that_do_less_are_not_lost(tmp_path: Path) -> None:
    dropped, folded, less, proximal = rows_of("fedprox_stragglers", tmp_path)
    assert dropped["devices_that_took_part"] < 20 < proximal["devices_that_took_part"]
    assert dropped["wasted_share"] > 0.5
    assert proximal["wasted_share"] == less["wasted_share"] == 0
    for own in (folded, less, proximal):
        assert own["best_accuracy"] > dropped["best_accuracy"]
    assert proximal["accuracy_by_round"] != less["accuracy_by_round"]


@pytest.mark.long
def test_asynchronous_rounds_are_sooner_at_the_goal_where_speeds_differ(tmp_path: Path) -> None:
    synchronous, over_selected, buffered = rows_of("fedbuff_virtual_time", tmp_path)
    assert buffered["hours_to_goal"] is not None
    for own in (synchronous, over_selected):
        assert own["hours_to_goal"] is None or own["hours_to_goal"] > buffered["hours_to_goal"]
    assert over_selected["hours"][10] < synchronous["hours"][10]


@pytest.mark.long
def test_phones_train_at_night(tmp_path: Path) -> None:
    rows = rows_of("day_of_phones", tmp_path)
    assert [row["hour"] for row in rows] == list(range(24))
    night, noon = [*rows[:4], rows[23]], rows[11:15]
    assert min(row["can_train"] for row in night) > 10 * max(row["can_train"] for row in noon)
    assert min(row["rounds"] for row in night) > max(row["rounds"] for row in noon)
    assert sum(row["failed"] for row in rows) > 0
    assert rows[3]["accuracy"] > 0.8


@pytest.mark.long
def test_devices_gain_from_fine_tuning_where_they_differ(tmp_path: Path) -> None:
    rows = rows_of("personalisation", tmp_path)
    gains = [row["own"] - row["global"] for row in rows]
    assert statistics.mean(gains) > 0.02
    assert sum(gain > 0 for gain in gains) > sum(gain < 0 for gain in gains)


@pytest.mark.long
def test_roles_of_a_play_teach_each_strategy_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("the quality of mercy is not strained", "now is the winter of our discontent")
    speeches = [f"{name}:\n{lines[(number + turn) % 2]}" for turn in range(40) for number, name in enumerate("ABCD")]
    (tmp_path / "shakespeare.txt").write_text("\n\n".join(speeches))
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path))
    rows = rows_of("adaptive_shakespeare", tmp_path)
    assert [row["variant"] for row in rows] == ["FedAvg", "FedAdam", "FedYogi"]
    for row in rows:
        assert row["loss"] < 0.8 * row["loss_by_round"][0]
    assert len({row["loss"] for row in rows}) == 3
