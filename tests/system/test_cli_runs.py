"""Runs under command: started with a policy, watched, paused, resumed, cloned - as programs, with devices that are slow."""

import os
import pty
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.server_harness import POPULATION, RunningServer, ScriptedDevice
from tests.umbel_command import Umbel
from tests.waiting import eventually
from umbel import tensors
from umbel.messages import Ack, Blob, Command, Outcome, Train, Trained
from umbel.plan import Plan
from umbel_server.storage.database import Device
from umbel_sim.demo.processes import program

ENVIRONMENT = {"COLUMNS": "100", "LINES": "50", "TERM": "xterm-256color", "PATH": os.environ["PATH"]}


class Terminal:
    """A program on a terminal, and what it has written there."""

    def __init__(self, command: list[str]) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=ENVIRONMENT)
        os.close(theirs)
        self._written = b""

    def shows(self, words: str) -> bool:
        """Whether `words` were written by now, without regard to colours; reads on."""
        self._read()
        return words in self.text()

    def _read(self) -> bool:
        """Read what a terminal holds at once, a few kB; False when the program has closed it and all is read."""
        try:
            self._written += os.read(self._ours, 1 << 16)
        except OSError:
            return False
        return True

    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self._written.decode(errors="replace"))

    def end(self) -> int:
        """Read to the program's end; returns its exit code."""
        while self._read():
            pass
        os.close(self._ours)
        return self._process.wait(60)


def quick(plan: Plan) -> Callable[[Command], Outcome | Ack | None]:
    def work(command: Command) -> Outcome | None:
        if not isinstance(command.body, Train):
            return None
        update = {spec.name: np.full(spec.shape, 0.1, np.float32) for spec in plan.manifest.weights}
        return Trained(command.body.assignment, Blob.of(tensors.dump(update)), 5, {"loss": 0.5}, 0.25)

    return work


def leave(device: ScriptedDevice) -> None:
    device.on_hello = lambda _: None  # one that leaves answers no more
    device.say(device.status(False), "status", retain=True)
    device.stop()


def accepting(command: Command) -> Ack | None:
    return Ack(command.id, POPULATION, "busy", "accepted", 0.0) if isinstance(command.body, Train) else None


def test_an_operator_watches_pauses_resumes_and_clones(
    running: RunningServer, plan_of: Callable[[str], Plan], tmp_path: Path
) -> None:
    umbel, plan = Umbel(tmp_path / "server", columns=100), plan_of("line")
    devices = [
        ScriptedDevice(running, "quick", quick(plan)),
        ScriptedDevice(running, "busy", accepting),
        ScriptedDevice(running, "silent", lambda _: None),
    ]
    running.wait_online(3)
    (tmp_path / "policy.toml").write_text("over_selection = 1.0\ndeadline = 5.0\n")
    started = umbel.json(
        *("runs", "start", plan.path, "-p", POPULATION, "--policy", tmp_path / "policy.toml", "--deadline", "60"),
        *("--target", "3", "--quorum", "1", "--late", "fold", "--budget", "hours=1,bytes=1GB", "--budget", "rounds=2"),
    )
    id, settings = started["id"], started["settings"]
    assert (settings["rounds"], settings["budget_hours"], settings["budget_bytes"]) == (2, 1.0, 10**9)
    wanted = {"target": 3, "quorum": 1, "over_selection": 1.0, "deadline": 60.0, "late": "fold", "attempts": 5}
    assert {name: settings["policy"][name] for name in wanted} == wanted

    def states() -> Any:
        return running.client.get(f"/v1/runs/{id}/live")["states"]

    eventually(lambda: states()["round"] == {"uploaded": 1, "accepted": 1, "offered": 1})
    shown = umbel("runs", "show", id[:6], "--round", "1")
    for words in ("open for", "closes in", "wanted 3, quorum 1; ", "1 uploaded", "1 accepted", "1 offered"):
        assert words in shown
    rows = {line.split()[0]: line for line in shown.splitlines() if line}
    assert "waits for its round" in rows["quick"]
    assert "expires in" in rows["busy"]
    assert "expires in" in rows["silent"]

    terminal = Terminal([program("umbel"), "runs", "watch", "latest", "--state", str(tmp_path / "server")])
    eventually(lambda: terminal.shows("not answered for "))
    text = terminal.text()
    assert re.search(r"not answered for [1-9]\d* s", text)
    for words in (f"run {id}  running", "0 of 2", "1 of 3", "quorum 1 reached", "training for", "closes in"):
        assert words in text
    leave(devices[2])
    eventually(lambda: terminal.shows("offline, offered"))
    paused = umbel("runs", "pause", id)
    assert "paused after 0 of 2 rounds: paused by an administrator" in paused
    assert f"umbel runs resume {id}" in paused
    assert terminal.end() == 1
    assert f"umbel runs resume {id}" in terminal.text()
    reasons = {a["device"]: (a["state"], a["reason"]) for a in umbel.json("runs", "show", id)["assignments"]}
    assert reasons["busy"] == ("cancelled", "the run was paused")
    assert reasons["quick"] == ("uploaded", "")

    leave(devices[1])
    running.wait_online(1)
    assert umbel.json("runs", "resume", id)["state"] == "running"
    lines = umbel("runs", "watch", id).splitlines()
    assert [line.split("  ")[0] for line in lines[:-1]] == ["round 1/2", "round 2/2"]
    assert "finished after 2 of 2 rounds" in lines[-1]
    shown = umbel("runs", "show", id)
    assert "committed in" in shown
    assert "wants 3; quorum 1; deadline 60 s; ends at 1 h, 1.0 GB" in shown
    assert "only a paused run can be resumed" in umbel("runs", "resume", id, code=1)
    assert "it has committed 2 rounds" in umbel("runs", "show", id, "--round", "3", code=1)

    cloned = umbel.json(
        *("runs", "clone", id, "--rounds", "1", "--seed", "7", "--budget", "hours=0", "--from-checkpoint", f"{id}@1"),
        *("--target", "0", "--watch"),
    )
    assert (cloned["state"], cloned["round"]) == ("finished", 1)
    settings = cloned["settings"]
    assert (settings["seed"], settings["budget_hours"], settings["budget_bytes"]) == (7, 0.0, 10**9)
    assert settings["policy"] == {**started["settings"]["policy"], "target": 0}
    first = running.client.get(f"/v1/runs/{id}")["checkpoints"][1]
    assert cloned["checkpoints"][0]["weights"] == first["weights"]
    devices[0].stop()


def test_a_run_without_devices_says_so_and_pauses(
    running: RunningServer, plan_of: Callable[[str], Plan], tmp_path: Path
) -> None:
    umbel, plan = Umbel(tmp_path / "server", columns=100), plan_of("line")
    devices = [ScriptedDevice(running, name, quick(plan)) for name in ("one", "two")]
    running.wait_online(2)
    leave(devices[1])
    running.wait_online(1)
    start = ("runs", "start", plan.path, "-p", POPULATION, "--quorum", "2", "--deadline", "1", "--backoff", "0.1")
    lines = umbel(*start, "--attempts", "2", "--watch", code=1).splitlines()
    assert lines[1] == (
        "round 1, attempt 1 abandoned: 2 devices are needed and 1 can train (1 offline); start more devices or lower the quorum"
    )
    assert lines[2].startswith("round 1, attempt 2 abandoned: ")
    assert "paused after 0 of 10 rounds: round 1 was abandoned 2 times in a row" in " ".join(lines[3:])
    shown = umbel("runs", "show", "latest")
    assert "round 1, attempt 2  abandoned after" in shown
    assert "No device was assigned." in shown
    live = running.client.get("/v1/runs/latest/live")
    assert live["devices"] == {"available": 1, "excluded": {"offline": 1}}
    assert live["abandoned"]["count"] == 2
    assert [row["round"] for row in live["checkpoints"]] == [0]
    assert running.client.get("/v1/runs/latest/live", after=0)["checkpoints"] == []
    assert umbel.json("runs", "stop", "latest")["state"] == "stopped"
    devices[0].stop()


def test_a_quarantined_device_is_seen_and_readmitted(running: RunningServer, tmp_path: Path) -> None:
    umbel = Umbel(tmp_path / "server", columns=100)
    device = ScriptedDevice(running, "phone", lambda _: None)
    running.wait_online(1)
    with running.server.database.transaction() as session:
        row = session.get_one(Device, (POPULATION, "phone"))
        row.quarantined, row.rejections = "3 updates were rejected, the last because [it] is not finite", 3
    assert "quarantined" in umbel("devices", "list")
    assert "the last because [it] is not finite" in umbel("devices", "show", "phone", "-p", POPULATION)
    assert "not enrolled here" in umbel("devices", "readmit", "nobody", "-p", POPULATION, code=1)
    assert "gets assignments again" in umbel("devices", "readmit", "phone", "-p", POPULATION)
    readmitted = umbel.json("devices", "readmit", "phone", "-p", POPULATION)
    assert (readmitted["quarantined"], readmitted["rejections"]) == ("", 0)
    assert "quarantined" not in umbel("devices", "list")
    device.stop()


def test_settings_that_make_no_sense_are_one_sentence(
    running: RunningServer, plan_of: Callable[[str], Plan], tmp_path: Path
) -> None:
    umbel = Umbel(tmp_path / "server", columns=100)
    start = ("runs", "start", plan_of("line").path, "-p", POPULATION)
    for words, sentence in (
        (("--quorum", "0"), "--quorum: quorum should be at least 1, got 0"),
        (("--target", "2", "--quorum", "3"), "the round policy: target should be at least the quorum of 3, got 2"),
        (("--select", "best"), "'best' is not one of"),
        (("--budget", "hours=x"), "--budget: expected hours=NUMBER"),
        (("--rounds", "3", "--budget", "rounds=4"), "--rounds; give one of them"),
        (("--policy", tmp_path / "none.toml"), "none.toml: no such file or directory"),
        (("--minimum", "3"), "no such option '--minimum'"),
    ):
        refused = umbel(*start, *words, code=2)
        assert len(refused.strip().splitlines()) == 1, refused
        assert sentence in refused
    assert umbel.json("runs", "list") == []
    assert "has an id beginning with 'none'" in umbel(*start, "--from-checkpoint", "none@3", code=1)


def test_help_explains_arguments_and_keeps_options_in_panels() -> None:
    done = subprocess.run(
        [program("umbel"), "runs", "start", "--help"], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert "a plan made by 'umbel compile'" in done.stdout
    panels = re.findall(r"╭─ (.+?) ─", done.stdout)
    assert panels[:4] == ["Arguments", "Options", "Training", "Start and end"]
    assert all(panel.startswith("Round policy: ") for panel in panels[4:])
    assert "[default: 120]" in done.stdout
