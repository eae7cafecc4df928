"""SIGTERM and SIGINT: the first asks to stop, the second ends the process now, and no lock is taken on the way."""

import signal
import subprocess
import sys

import pytest

PATIENT = """
import queue, sys, threading, time
from umbel_edge.cli.signals import stop_on_signals
jobs, stopping = queue.Queue(), threading.Event()
def stop():
    stopping.set()
    jobs.put(None)
stop_on_signals(stop)
print("ready", flush=True)
while not stopping.is_set():
    try:
        jobs.get(timeout=0.0001)  # holds the queue's lock most of the time
    except queue.Empty:
        pass
print("stopped", flush=True)
time.sleep(float(sys.argv[1]))
"""


def started(pause: float) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", PATIENT, str(pause)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_asks_the_agent_to_stop(number: signal.Signals) -> None:
    process = started(0.0)
    process.send_signal(number)
    assert process.communicate(timeout=20)[0] == "stopped\n"
    assert process.returncode == 0


def test_the_second_ends_the_process_now() -> None:
    process = started(60.0)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopped\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == -signal.SIGTERM


def test_two_at_once_never_hang() -> None:
    for _ in range(15):
        process = started(0.0)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)
