"""The benchmark of simulators as a person runs it, with the engines that need nothing to be installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "simulations" / "benchmarks" / "simulation.py"


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"COLUMNS": "140"}
    return subprocess.run(
        [sys.executable, str(PROGRAM), "--venvs", str(folder / "venvs"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )


@pytest.mark.long
def test_a_small_comparison_has_a_row_for_each_engine(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    small = ("--models", "mlp", "--devices", "6", "--cohort", "2", "--rounds", "2", "--turns", "1")
    done = run(tmp_path, "--only", "umbel", "keras-loop", *small, "--json", str(rows))
    assert done.returncode == 0, done.stdout + done.stderr
    found = {row["engine"]: row for row in json.loads(rows.read_text())}
    assert set(found) == {"umbel", "keras-loop"}
    for row in found.values():
        assert (row["model"], row["devices"], row["cohort"]) == ("mlp", 6, 2)
        assert 0 < row["min_ms"] <= row["ms"]
        assert 100 < row["peak_mb"] < 4000
    assert "not measured: unknown" in done.stdout
    assert not (tmp_path / "venvs").exists()


@pytest.mark.long
def test_an_engine_that_takes_too_long_is_ended_and_named(tmp_path: Path) -> None:
    done = run(tmp_path, "--only", "keras-loop", "--models", "mlp", "--turns", "1", "--limit", "0.5")
    assert done.returncode == 1
    assert "keras-loop, mlp, 1,000 devices, cohort 50 failed: it took over 0.5 s" in done.stdout
