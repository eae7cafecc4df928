"""Run a program and measure its memory, its children's, and how busy other programs kept the machine."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.25
STOP_SECONDS = 5.0


class Failed(Exception):
    """A program failed or took too long; the message has the reason and the end of its output."""


@dataclass(frozen=True)
class Watched:
    """The measurements of a program.

    Attributes:
        peak_mb: the largest sampled sum of resident memory, in MB, over the program and its children; memory that
            processes share counts once for each of them.
        elsewhere: the processor cores, on average, that other programs kept busy meanwhile.
    """

    peak_mb: float
    elsewhere: float


def watch(command: Sequence[str], environment: Mapping[str, str], log: Path, seconds: float) -> Watched:
    """Run a program to its end, with its output in `log`, and end every process that it started. Raises Failed."""
    seen: dict[int, psutil.Process] = {}
    used: dict[int, float] = {}
    peak, began, busy = 0.0, time.monotonic(), _busy()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    try:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            if time.monotonic() - began > seconds:
                raise Failed(f"it took over {seconds:g} s{_tail(log)}")
            peak = max(peak, _sample(root, seen, used))
            time.sleep(SAMPLE_SECONDS)
        took = time.monotonic() - began
        elsewhere = max(0.0, _busy() - busy - sum(used.values())) / took
    finally:
        _end(process, list(seen.values()))
    if process.returncode:
        raise Failed(f"it ended with exit code {process.returncode}{_tail(log)}")
    return Watched(peak, elsewhere)


def _sample(root: psutil.Process, seen: dict[int, psutil.Process], used: dict[int, float]) -> float:
    try:
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0.0
    total = 0
    for member in family:
        seen.setdefault(member.pid, member)
        try:
            with member.oneshot():
                times = member.cpu_times()
                used[member.pid] = times.user + times.system
                total += member.memory_info().rss
        except psutil.Error:
            continue
    return total / 2**20


def _busy() -> float:
    """The seconds of work of all cores together since the machine started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def _end(process: "subprocess.Popen[bytes]", children: Sequence[psutil.Process]) -> None:
    """Stop the processes that are left. psutil detects when another process has got the id of one that ended."""
    if process.poll() is None:
        process.terminate()
    for member in children:
        if member.pid != process.pid and member.is_running():
            with suppress(psutil.Error):
                member.terminate()
    psutil.wait_procs(children, STOP_SECONDS)
    for member in children:
        if member.pid != process.pid and member.is_running():
            with suppress(psutil.Error):
                member.kill()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return ": " + " / ".join(lines[-3:])[-600:] if lines else ""
