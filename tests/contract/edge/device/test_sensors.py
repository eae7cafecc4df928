"""What NetworkManager says of the connection, through a program that answers as busctl does - or does not."""

import time
from pathlib import Path

import pytest

from umbel_edge.device.sensors import NETWORK_FRESH_SECONDS, NETWORK_PAUSE, NETWORK_TIMEOUT, NetworkSensor


def program(folder: Path, script: str) -> str:
    path = folder / "busctl"
    path.write_text(f"#!/bin/sh\necho >> {folder / 'calls'}\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(("answer", "metered"), [("u 1", True), ("u 2", False), ("u 3", True), ("u 4", False)])
def test_its_opinion_is_asked_for_and_used_for_some_seconds(tmp_path: Path, answer: str, metered: bool) -> None:
    now = [0.0]
    network = NetworkSensor(lambda: now[0], program(tmp_path, f"echo {answer}"))
    assert network.metered() is network.metered() is metered
    now[0] = NETWORK_FRESH_SECONDS
    assert network.metered() is metered
    assert len((tmp_path / "calls").read_text()) == 2


@pytest.mark.parametrize("script", ["echo u 0", "exit 1", "echo", "exec sleep 60"])
def test_no_answer_is_unknown_within_bounded_time(tmp_path: Path, script: str) -> None:
    network = NetworkSensor(lambda: 0.0, program(tmp_path, script))
    started = time.monotonic()
    assert network.metered() is None
    assert time.monotonic() - started < NETWORK_TIMEOUT + 2


def test_a_device_without_it_is_not_asked_again_and_again(tmp_path: Path) -> None:
    assert NetworkSensor(lambda: 0.0, None).metered() is None
    now = [0.0]
    network = NetworkSensor(lambda: now[0], program(tmp_path, "exit 1"))
    for _ in range(20):
        network.metered()
        now[0] += NETWORK_PAUSE / 10
    assert len((tmp_path / "calls").read_text()) == 2
