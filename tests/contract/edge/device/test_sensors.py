"""The device's sensors, and the network through a program that answers as busctl does, or does not answer."""

import math
import os
import time
from pathlib import Path

import psutil
import pytest

from umbel.conditions import Rules
from umbel_edge.device.condition_check import ConditionCheck
from umbel_edge.device.sensors import (
    NETWORK_FRESH_SECONDS,
    NETWORK_PAUSE,
    NETWORK_TIMEOUT,
    LoadSensor,
    NetworkSensor,
    read,
    resident_mb,
    system_sensors,
)


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


def test_the_systems_own_readings_are_of_the_right_kind_and_cheap(tmp_path: Path) -> None:
    conditions = ConditionCheck(tmp_path, lambda: 3)
    everything = Rules(0.01, False, True, 1e9, 1e9, "0-24", 1.0, 1.0, 1)
    assert not {v.condition for v in conditions.violations(everything)} - {"battery", "network"}
    started = time.perf_counter()
    for _ in range(1000):
        conditions.violations(everything)
    assert time.perf_counter() - started < 0.5
    impossible = Rules(max_load=0.0, min_free_memory_mb=1e12, min_free_disk_mb=1e12, min_examples=4)
    found = {v.condition for v in conditions.violations(impossible)}
    assert found >= {"free memory", "free disk", "examples"}


def test_training_does_not_stop_because_of_its_own_load() -> None:
    now, others = [0.0], 1.0
    average = [others]
    load = LoadSensor(lambda: now[0], cpu=lambda: 2 * now[0], system=lambda: average[0])  # two threads that train
    for _ in range(300):
        now[0] += 1.0
        average[0] += (others + 2 - average[0]) * (1 - math.exp(-1 / 60))
        assert load.of_others() * (os.cpu_count() or 1) == pytest.approx(others)


def linux(root: Path, files: dict[str, str]) -> dict[str, object]:
    """What the sensors read of a Linux whose /proc and /sys hold `files`."""
    (root / "proc").mkdir()
    (root / "proc" / "meminfo").write_text("MemTotal:  1000000 kB\nMemFree:  100 kB\nMemAvailable:  250000 kB\n")
    for name, text in files.items():
        path = root / "sys" / "class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return {name: read(sensor) for name, sensor in system_sensors(root, time.monotonic, root).items()}


BATTERY = {"power_supply/BAT0/type": "Battery", "power_supply/BAT0/capacity": "42"}
CHARGER = {"power_supply/AC/type": "Mains", "power_supply/AC/online": "1"}
PEN = {"power_supply/A/type": "Battery", "power_supply/A/capacity": "7", "power_supply/A/scope": "Device"}
STATUS = "power_supply/BAT0/status"
ZONE = "thermal/thermal_zone0/temp"


@pytest.mark.parametrize(
    ("files", "battery", "charging", "temperature"),
    [
        ({}, None, None, None),
        (PEN, None, None, None),
        (PEN | BATTERY, 0.42, None, None),
        (BATTERY | CHARGER, 0.42, True, None),
        (BATTERY | CHARGER | {"power_supply/AC/online": "0", STATUS: "Discharging"}, 0.42, False, None),
        (BATTERY | {STATUS: "Charging"}, 0.42, True, None),
        (BATTERY | {STATUS: "Unknown"}, 0.42, None, None),
        (BATTERY | {"power_supply/BAT0/capacity": "104"}, 1.0, None, None),
        (BATTERY | {"power_supply/BAT0/capacity": "?"}, None, None, None),
        ({ZONE: "48312"}, None, None, 48.312),
        ({ZONE: "48312", "hwmon/hwmon0/temp1_input": "51000", "hwmon/hwmon1/temp2_input": "-128000"}, None, None, 51.0),
    ],
)
def test_linux_tells_battery_charger_and_temperature_without_psutil(
    tmp_path: Path, files: dict[str, str], battery: float | None, charging: bool | None, temperature: float | None
) -> None:
    found = linux(tmp_path, files)
    assert (found["battery"], found["charging"], found["temperature"]) == (battery, charging, temperature)
    assert found["free_memory_mb"] == 256.0


def test_readings_are_those_of_psutil(tmp_path: Path) -> None:
    ours = {name: read(sensor) for name, sensor in system_sensors(tmp_path, time.monotonic).items()}
    theirs = {name: read(sensor) for name, sensor in system_sensors(tmp_path, time.monotonic, tmp_path).items()}
    assert ours["free_memory_mb"] == pytest.approx(theirs["free_memory_mb"], rel=0.1)
    assert ours["free_disk_mb"] == pytest.approx(psutil.disk_usage(str(tmp_path)).free / 1e6, rel=0.01)
    assert (ours["battery"], ours["charging"]) == (theirs["battery"], theirs["charging"])
    assert resident_mb() == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.05)
