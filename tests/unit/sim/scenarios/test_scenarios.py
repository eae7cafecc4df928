"""Every scenario on its small setting shows what it is there to show."""

import importlib.util
import json
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCENARIOS = Path(__file__).parents[4] / "simulations" / "scenarios"


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
