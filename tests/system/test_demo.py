"""`umbel demo` as a person runs it."""

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from tests.waiting import eventually
from umbel_sim.demo.processes import program

KEYS = {
    "id",
    "kind",
    "trainer",
    "examples",
    "rounds",
    "rss_mb",
    "imports",
    "installed",
    "answers_right",
    "answers_total",
    "personal_accuracy",
}


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes whose command names `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.long
@pytest.mark.serial
def test_the_demo_trains_ships_and_uses_a_model(tmp_path: Path) -> None:
    json, keep = tmp_path / "demo.json", tmp_path / "kept"
    done = subprocess.run(
        [program("umbel"), "demo", "--json", str(json), "--keep", str(keep)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = msgspec.json.decode(json.read_bytes())
    assert set(report) == {"ok", "wall_s", "phases", "accuracy", "keras_accuracy", "release", "devices"}
    assert report["ok"] is True
    assert list(report["phases"]) == ["start", "compile", "train", "release", "install", "infer", "export", "report"]
    assert len(report["accuracy"]) == 15
    assert report["accuracy"][-1] >= 0.93
    assert list(report["release"]) == ["float32", "float16", "int8"]
    assert report["release"]["float32"]["accuracy"] == report["keras_accuracy"]
    assert report["release"]["float16"]["difference"] < 0.01
    assert report["release"]["int8"]["accuracy"] >= 0.9
    assert report["release"]["int8"]["bytes"] < report["release"]["float32"]["bytes"] / 2
    devices = report["devices"]
    assert sorted(d["kind"] for d in devices) == ["phone"] * 5 + ["vehicle"] * 3
    assert sorted(d["trainer"] for d in devices) == ["keras"] + ["litert"] * 7
    assert sum(d["examples"] for d in devices) == 1438
    for device in devices:
        assert set(device) == KEYS
        assert device["rounds"] == 15
        assert device["answers_right"] == device["answers_total"] > 0
        assert device["personal_accuracy"] > 0.5
        if device["trainer"] == "litert":
            assert device["imports"] == []
            assert device["rss_mb"] <= 70
        else:
            assert device["imports"] == ["tensorflow"]
    assert processes_of(keep) == []


@pytest.mark.serial
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.long
def test_an_interrupted_demo_says_so_and_leaves_no_process_and_no_file(number: signal.Signals, tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [program("umbel"), "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        # Tests that run in the background of a shell are started with interrupts ignored; the demo should not be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    eventually(lambda: len(processes_of(tmp_path)) >= 10, 30)
    os.kill(demo.pid, number)
    shown, _ = demo.communicate(timeout=30)
    assert demo.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert "stopping the broker, the server and the agents" in shown
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.serial
@pytest.mark.long
def test_a_failed_phase_ends_with_one_sentence_that_names_the_log(tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    demo = subprocess.Popen(
        [program("umbel"), "demo", "--keep", str(keep)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    agents = eventually(lambda: [p for p in processes_of(keep / "phone-3") if p.pid != demo.pid], 30)
    agents[0].kill()
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert re.fullmatch(rf"umbel: phone-3 ended with exit code -9; read {re.escape(str(keep))}/phone-3\.log", last), (
        errors
    )
    assert processes_of(keep) == []
