"""`umbel simulate` as a person types it: what it prints and writes, and one sentence for whatever cannot be."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.compiled_plans import TASKS
from tests.faults.small_disk import SmallDisk, can_mount
from tests.waiting import eventually
from umbel import tensors
from umbel_server.cli import main
from umbel_sim.demo.processes import program
from umbel_sim.simulation.folder import claimed

LINE = str(TASKS / "line.py")
PICTURES = {"data.png", "devices.png", "duration.png", "learning.png", "participation.png", "work.png"}


class Done:
    """What a command in this process printed, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def umbel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Done]:
    """The command in an empty folder, without the seconds that a new process takes to import Keras."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (120, 1)).astype(np.float32)
    np.savez("line.npz", x=x[:100], y=2 * x[:100] - 1, x_test=x[100:], y_test=2 * x[100:] - 1)

    def run(*words: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["umbel", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert isinstance(code, int)
        return Done(code, *capsys.readouterr())

    return run


def test_a_process_trains_digits_prints_json_and_fills_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    words = ["simulate", TASKS / "digits.py", "--data", "digits", "--devices", "20", "--rounds", "3", "--target", "5"]
    words += ["--partition", "shards:2", "--class", "phone-low:drop_out=0.1=0.5", "--class", "vehicle", "--json"]
    words += ["--until", "accuracy>=0.99", "--output", folder]
    done = subprocess.run(
        [program("umbel"), *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    assert (summary["state"], summary["rounds"], summary["devices"]) == ("finished", 3, 20)
    assert (summary["goal"], summary["rounds_to_goal"]) == ("accuracy>=0.99", None)
    assert {path.name for path in folder.iterdir()} == PICTURES | {
        *("checkpoint.umbel", "result.json", "rounds.parquet", "devices.parquet", "weights.safetensors", "report.html")
    }
    kept = json.loads((folder / "result.json").read_text())
    assert kept["summary"] == summary
    assert kept["settings"]["mix"] == ["phone-low:drop_out=0.1=0.5", "vehicle"]
    rounds = pd.read_parquet(folder / "rounds.parquet")
    assert rounds["round"].tolist() == [0, 1, 2, 3]
    assert rounds["test_accuracy"].iloc[-1] == summary["test_accuracy"]
    assert len(tensors.load((folder / "weights.safetensors").read_bytes())) == 6
    assert (folder / "report.html").read_text().count("data:image/png;base64,") == len(PICTURES)
    for name in PICTURES:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_a_person_reads_what_came_of_it(umbel: Callable[..., Done]) -> None:
    done = umbel("simulate", LINE, "--data", "line.npz", "--devices", "1", "--rounds", "1")
    assert (done.code, done.err) == (0, "")
    assert "1 devices with 100 examples" in done.out
    assert "its last round is committed" in done.out
    assert "report: simulation-line-0/report.html" in done.out
    assert Path("simulation-line-0/report.html").is_file()
    longer = umbel("simulate", LINE, "--data", "line.npz", "--devices", "1", "--rounds", "3", "--json")
    assert json.loads(longer.out)["rounds"] == 3
    assert len(pd.read_parquet("simulation-line-0/rounds.parquet")) == 4


@pytest.mark.long
def test_a_sweep_compares_values_over_seeds(umbel: Callable[..., Done]) -> None:
    words = ["simulate", LINE, "--data", "line.npz", "--devices", "5", "--rounds", "2", "--seeds", "2"]
    done = umbel(*words, "--sweep", "learning-rate=0.05,0.2", "--output", "out", "--json")
    assert (done.code, done.err) == (0, "")
    rows = json.loads(done.out)
    assert rows == json.loads(Path("out/comparison.json").read_text())
    assert [(row["learning_rate"], row["seeds"], row["rounds"]) for row in rows] == [(0.05, 2, 2), (0.2, 2, 2)]
    assert rows[1]["loss"] < rows[0]["loss"]
    assert Path("out/comparison.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in Path("out").iterdir() if path.is_dir()} == {
        f"learning_rate={rate}_seed={seed}" for rate in (0.05, 0.2) for seed in (0, 1)
    }


HEAD = "device,start,end,online,charging,metered\n"
REFUSED: list[tuple[list[str], int, str]] = [
    (["--data", "nothing"], 1, "no data called 'nothing'; there are digits"),
    (["--data", "absent.npz"], 1, "absent.npz: no such file"),
    (["--data", "digits"], 1, "an example's 'x' has shape"),
    (["--partition", "thirds"], 1, "no partition 'thirds'; there are iid"),
    (["--partition", "shards:x"], 1, "partition 'shards:x': expected"),
    (["--devices", "101"], 1, "101 devices with at least 1 examples each need 101, there are 100"),
    (["--devices", "20", "--partition", "natural"], 1, "natural"),
    (["--target", "11"], 1, "a round wants 11 updates and there are 10 devices; lower --target or raise --devices"),
    (["--quorum", "11"], 1, "the quorum is 11 updates and there are 10 devices; lower --quorum"),
    (["--until", "mae>=1"], 1, "the plan has no metric 'mae' to train until; it has loss"),
    (["--until", "loss"], 2, "expected METRIC>=VALUE"),
    (["--class", "tank"], 1, "there is no device class 'tank'; there are phone-low"),
    (["--class", "phone-low:colour=1"], 1, "a device class has no 'colour'"),
    (["--strategy", "fedbest"], 1, "no strategy 'fedbest'; there are fedavg"),
    (["--option", "eta=1"], 1, "strategy fedavg has no option 'eta'"),
    (["--strategy", "fedadam", "--option", "eta=x"], 2, "expected NAME=NUMBER, got 'eta=x'"),
    (["--availability", "absent.csv"], 1, "absent.csv: expected a trace in CSV, could not read one: No such file"),
    (["--availability", "nightly"], 1, "availability is always, diurnal or a trace in CSV; there is no file 'nightly'"),
    (["--availability", "gap.csv"], 1, "gap.csv: device 0 has a gap between line 2"),
    (["--condition", "charging=perhaps"], 2, "charging"),
    (["--engine", "abacus"], 1, "there is no engine 'abacus'; there are auto, native, litert"),
    (["--learning-rate", "1e30"], 1, "learning rate should be at most 1,000,000"),
    (["--learning-rate", "nan"], 1, "learning rate should be at least 0, got nan"),
    (["--seed", str(10**20)], 1, "seed should be at most"),
    (["--rounds", "0"], 2, "--rounds"),
    (["--devices", "ten"], 2, "--devices"),
    (["--output", "line.npz"], 1, "line.npz: the result cannot be written"),
    (["--output", "/proc/simulation"], 1, "/proc/simulation: the result cannot be written"),
    (["--sweep", "devices=5,2.5"], 1, "the simulation's devices cannot be 2.5"),
    (["--sweep", "strategy=fedavg,fedbest"], 1, "no strategy 'fedbest'"),
    (["--sweep", "target=5,50"], 1, "a round wants 50 updates and there are 10 devices"),
    (["--sweep", "seed=1,2"], 1, "seed is not a setting whose values can be compared"),
    (["--sweep", "colour=1,2"], 1, "strategy fedavg has no option 'colour'"),
    (["--sweep", "devices"], 2, "expected NAME=VALUE, got 'devices'"),
    (["--budget", "weeks=1"], 2, "expected hours=NUMBER"),
]


@pytest.mark.parametrize(
    ("words", "code", "sentence"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_cannot_be_is_refused_in_a_sentence(
    umbel: Callable[..., Done], words: list[str], code: int, sentence: str
) -> None:
    Path("gap.csv").write_text(f"{HEAD}0,0,10,1,1,0\n0,20,30,1,1,0\n")
    data = [] if "--data" in words else ["--data", "line.npz"]
    done = umbel("simulate", LINE, *data, "--devices", "10", "--rounds", "1", *words)
    assert done.code == code, done.err
    assert len(done.err.splitlines()) == 1, done.err
    assert sentence in done.err
    assert "Traceback" not in done.err


def test_a_device_without_examples_is_named_and_so_is_the_option(umbel: Callable[..., Done]) -> None:
    x = np.zeros((51, 1), np.float32)
    np.savez("owners.npz", x=x, y=x, key=np.repeat(["ann", "bob"], (1, 50)))
    few = umbel(
        "simulate", LINE, "--data", "owners.npz", "--devices", "2", "--partition", "natural", "--min-examples", "5"
    )
    assert (few.code, len(few.err.splitlines())) == (1, 1), few.err
    assert "'ann', who would be device 0, has 1; lower --min-examples" in few.err
    words = ["simulate", TASKS / "digits.py", "--data", "digits", "--devices", "100", "--min-examples", "5"]
    uneven = umbel(*words, "--partition", "dirichlet:0.05,by=label")
    assert (uneven.code, len(uneven.err.splitlines())) == (1, 1), uneven.err
    assert "device" in uneven.err
    assert "--min-examples" in uneven.err


@pytest.mark.long
def test_a_folder_of_another_simulation_and_one_in_use_are_refused(umbel: Callable[..., Done]) -> None:
    words = ["simulate", LINE, "--data", "line.npz", "--devices", "10", "--rounds", "1", "--output", "out"]
    assert umbel(*words).code == 0
    before = Path("out/result.json").read_bytes()
    done = umbel(*words, "--seed", "1")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "out holds another simulation" in done.err
    assert "name another output folder, or remove it" in done.err
    with claimed(Path("out")):
        done = umbel(*words)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "another simulation writes there" in done.err
    assert Path("out/result.json").read_bytes() == before
    Path("out/checkpoint.umbel").write_bytes(b"damaged")
    assert "could not read one" in umbel(*words).err


@pytest.mark.long
def test_what_ends_early_says_why_and_keeps_what_it_had(umbel: Callable[..., Done]) -> None:
    words = ["simulate", LINE, "--data", "line.npz", "--devices", "10", "--rounds", "3"]
    done = umbel(*words, "--learning-rate", "1e6", "--epochs", "5", "--output", "nan")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "the simulation failed: round 1: the loss of device-" in done.err
    assert "lower the learning rate (1e+06)" in done.err
    assert Path("nan/report.html").is_file()
    Path("never.csv").write_text(f"{HEAD}0,0,3600,0,0,0\n")
    done = umbel(*words, "--availability", "never.csv", "--output", "never")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "the simulation paused: round 1 was abandoned 5 times in a row" in done.err
    assert "10 offline" in done.err


def test_a_full_disk_is_a_sentence(umbel: Callable[..., Done], tmp_path: Path) -> None:
    if not can_mount(tmp_path / "probe"):
        pytest.skip("only root may mount a small disk")
    disk = SmallDisk(tmp_path / "disk")
    try:
        disk.fill()
        words = ["simulate", LINE, "--data", "line.npz", "--devices", "10", "--rounds", "1"]
        done = umbel(*words, "--output", disk.folder / "out")
        assert (done.code, len(done.err.splitlines())) == (1, 1), done.err
        assert "cannot be written: No space left on device" in done.err
        disk.free()
        assert umbel(*words, "--output", disk.folder / "out").code == 0
    finally:
        disk.unmount()


@pytest.mark.long
def test_ctrl_c_keeps_the_newest_checkpoint_and_the_same_command_goes_on(
    umbel: Callable[..., Done], tmp_path: Path
) -> None:
    words: list[Any] = ["simulate", LINE, "--data", "line.npz", "--devices", "10", "--output", "out"]
    log = (tmp_path / "log").open("w")
    with subprocess.Popen(
        [program("umbel"), *words, "--rounds", "1000000"],
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        try:
            saved = Path("out/checkpoint.umbel")
            eventually(saved.exists, 60)
            first = saved.stat().st_mtime_ns
            eventually(lambda: saved.stat().st_mtime_ns != first, 30)  # of a later round
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(30) == 1
        finally:
            process.kill()
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[-1] == "umbel: interrupted; the same command goes on from its newest checkpoint in out"
    assert len(lines) == 2  # how the examples are split, and this
    done = umbel(*words, "--rounds", "1", "--json")
    assert done.code == 0
    assert json.loads(done.out)["rounds"] > 1
