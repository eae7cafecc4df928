"""A new kind of command is a change of three files: made in a copy of the source, and sent by the real programs from there."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from tests.waiting import eventually
from umbel_sim.demo.processes import free_port

ROOT = Path(__file__).parents[2]
FOLDERS = ("shared", "server", "edge_client")
MESSAGES = "shared/umbel/messages.py"
KINDS = "server/umbel_server/commands/kinds.py"
TABLE = "edge_client/umbel_edge/commands/handlers/table.py"

STRUCTS = '''class Echo(Struct, frozen=True, tag="echo"):
    """Answer with the same text."""

    text: str


class Echoed(Struct, frozen=True, tag="echoed"):
    """The device got this text."""

    text: str


Body = Echo | '''
REQUEST = '''class EchoRequest(Struct, frozen=True):
    """Answer with the same text."""

    text: Annotated[str, Option("the text that comes back", required=True)] = ""

    def body(self, sources: Sources) -> Echo:
        """As Request."""
        return Echo(self.text)


KINDS: '''
HANDLER = '''def echo(context: HandlerContext, command: str, body: Echo) -> Echoed:
    """Answer with the same text."""
    return Echoed(body.text)


_ROWS = (
    Queued(Echo, echo),
'''
CHANGES = {
    MESSAGES: (
        ("Body = ", STRUCTS),
        ("Outcome = ", "Outcome = Echoed | "),
        ("    Report: Reported,\n", "    Report: Reported,\n    Echo: Echoed,\n"),
    ),
    KINDS: (
        ("    Cancel,\n    Evaluate,", "    Cancel,\n    Echo,\n    Evaluate,"),
        ("KINDS: ", REQUEST),
        ("    CommandKind(Standing),\n", "    CommandKind(Echo, EchoRequest),\n    CommandKind(Standing),\n"),
    ),
    TABLE: (
        ("    Cancel,\n    Evaluate,", "    Cancel,\n    Echo,\n    Echoed,\n    Evaluate,"),
        ("_ROWS = (\n", HANDLER),
    ),
}


@pytest.mark.long
def test_a_new_command_kind_changes_three_files_and_is_answered_by_the_real_agent(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, pairs in CHANGES.items():
        text = (source / name).read_text()
        for old, new in pairs:
            assert f"\n{text}".count(f"\n{old}") == 1, f"{old!r} in {name}"
            text = f"\n{text}".replace(f"\n{old}", f"\n{new}")[1:]
        (source / name).write_text(text)

    state, log = tmp_path / "server", tmp_path / "log"
    ports = "--port", str(free_port()), "--mqtt-port", str(free_port())
    made = json.loads(umbel(source, "init", str(state), "--insecure", "--open-enrolment", "--json", *ports))
    np.savez(tmp_path / "examples.npz", allow_pickle=False, x=np.zeros((2, 1), np.float32))
    agent = {
        "device": "phone",
        "population": "test",
        "kind": "phone",
        "server": made["server"],
        "enrolment_token": made["enrolment_token"],
        "examples": "examples.npz",
    }
    (tmp_path / "agent.toml").write_text(tomli_w.dumps(agent))
    with (
        running(source, log, "umbel_server", "serve", "--state", str(state)),
        running(source, log, "umbel_edge", str(tmp_path / "agent.toml")),
    ):
        at = "-p", "test", "--state", str(state), "--json"
        eventually(lambda: _online(source, state), 25)
        (command,) = json.loads(umbel(source, "command", "send", "echo", "--text", "over the fields", *at))
    assert (command["kind"], command["state"]) == ("echo", "done"), command
    assert command["outcome"] == {"type": "echoed", "text": "over the fields"}
    assert changed(source) == sorted(CHANGES)


def _online(source: Path, state: Path) -> bool:
    listed = subprocess.run(
        program(source, "umbel_server", "devices", "list", "--state", str(state), "--json"),
        env=environment(source),
        capture_output=True,
        check=False,
    )
    assert listed.returncode in (0, 1), listed.stderr  # 1: the server is not up yet
    return listed.returncode == 0 and any(device["online"] for device in json.loads(listed.stdout))


def program(source: Path, package: str, *arguments: str) -> list[str]:
    """The command line of `umbel` or `umbel-agent`, which ends unless it comes from the copy."""
    run = (
        f"import {package}.cli, umbel, sys; from pathlib import Path; "
        f"assert all(Path(m.__file__).is_relative_to({str(source)!r}) for m in ({package}.cli, umbel)); "
        f"sys.exit({package}.cli.main())"
    )
    return [sys.executable, "-c", run, *arguments]


def environment(source: Path) -> dict[str, str]:
    """This process's environment, with the copy as the place of the packages."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(source / folder) for folder in FOLDERS)}


def umbel(source: Path, *arguments: str) -> str:
    """What `umbel` from the copy prints."""
    ended = subprocess.run(
        program(source, "umbel_server", *arguments),
        env=environment(source),
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@contextmanager
def running(source: Path, log: Path, package: str, *arguments: str) -> Iterator[None]:
    """A program from the copy, which is ended with the block."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            program(source, package, *arguments), env=environment(source), stdout=file, stderr=file
        )
        try:
            yield
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def changed(source: Path) -> list[str]:
    """The files that are not in the copy as they are here, or only in one of both."""
    mine, copied = files(ROOT), files(source)
    return sorted(name for name in mine.keys() | copied.keys() if mine.get(name) != copied.get(name))


def files(root: Path) -> dict[str, str]:
    """The digest of each source file, by its path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in FOLDERS
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
