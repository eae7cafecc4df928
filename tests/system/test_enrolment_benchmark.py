"""The benchmark of enrolment, on a few devices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.long
def test_devices_are_enrolled_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    program = ROOT / "simulations" / "benchmarks" / "enrolment.py"
    done = subprocess.run(
        [sys.executable, str(program), "--devices", "5", "--threads", "2", "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 devices enrolled in ")
    row = json.loads(path.read_text())
    assert row["devices"] == 5
    assert row["enrol_s"] > 0
