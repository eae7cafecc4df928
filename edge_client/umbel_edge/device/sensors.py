"""Sensors of the device: battery, load, temperature, memory, disk and network."""

import math
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

NETWORK_FRESH_SECONDS = 10.0
"""The network is asked about again after this time."""
NETWORK_TIMEOUT = 1.0
NETWORK_PAUSE = 300.0
"""The network is asked about again after this time when no answer came."""

Sensor = Callable[[], Any]
"""Returns one field of umbel.conditions.Readings; raises, or returns None, when that cannot be measured here."""


def system_sensors(folder: Path, clock: Callable[[], float]) -> dict[str, Sensor]:
    """The system's sensors by field of umbel.conditions.Readings; `folder` says which disk counts, `clock` is monotonic."""
    return {
        "battery": _battery,
        "charging": _charging,
        "metered": NetworkSensor(clock, shutil.which("busctl")).metered,
        "load": LoadSensor(clock).of_others,
        "temperature": _temperature,
        "free_memory_mb": lambda: psutil.virtual_memory().available / 1e6,
        "free_disk_mb": lambda: psutil.disk_usage(str(folder)).free / 1e6,
    }


def resident_mb() -> float:
    """Resident memory of this process in MB (10^6 bytes)."""
    return float(psutil.Process().memory_info().rss) / 1e6


def read(sensor: Sensor) -> Any:
    """The sensor's reading, or None when this device has no such sensor."""
    try:
        return sensor()
    except (OSError, AttributeError, NotImplementedError, RuntimeError, ValueError):
        return None  # psutil lacks the functions that the platform cannot serve


def _battery() -> float | None:
    battery = psutil.sensors_battery()
    return min(1.0, max(0.0, float(battery.percent) / 100)) if battery is not None else None


def _charging() -> bool | None:
    battery = psutil.sensors_battery()
    return bool(battery.power_plugged) if battery is not None and battery.power_plugged is not None else None


def _temperature() -> float | None:
    found = [sensor.current for sensors in psutil.sensors_temperatures().values() for sensor in sensors]
    # Sensors that are not connected report the end of their scale; those values are dropped.
    return max((float(value) for value in found if -40 < value < 150), default=None)


class LoadSensor:
    """The load average without the agent's own share, so that training does not break the rule about load."""

    def __init__(
        self,
        clock: Callable[[], float],
        cpu: Callable[[], float] = time.process_time,
        system: Callable[[], float] = lambda: psutil.getloadavg()[0],
    ) -> None:
        self._clock, self._cpu, self._system = clock, cpu, system
        self._last = clock(), cpu()
        self._own = 0.0

    def of_others(self) -> float:
        """The 1-minute load average of all other processes, divided by the cores."""
        now, cpu = self._clock(), self._cpu()
        elapsed = now - self._last[0]
        if elapsed > 0:
            used = (cpu - self._last[1]) / elapsed
            # As the kernel's own 1-minute average decays.
            self._own += (used - self._own) * (1 - math.exp(-elapsed / 60))
            self._last = now, cpu
        return max(0.0, self._system() - self._own) / (psutil.cpu_count() or 1)


class NetworkSensor:
    """Whether NetworkManager calls the default connection metered, asked with the program busctl."""

    def __init__(self, clock: Callable[[], float], program: str | None) -> None:
        self._clock, self._program = clock, program
        self._known: tuple[float, bool | None] = float("-inf"), None

    def metered(self) -> bool | None:
        """Whether the connection is metered; None when that is unknown. Takes at most NETWORK_TIMEOUT seconds."""
        until, known = self._known
        if self._program is None or self._clock() < until:
            return known
        name = "org.freedesktop.NetworkManager"
        command = (self._program, "--system", "get-property", name, "/org/freedesktop/NetworkManager", name, "Metered")
        try:
            answer = subprocess.run(command, capture_output=True, timeout=NETWORK_TIMEOUT, check=True).stdout.split()
            # NMMetered: 1 yes, 2 no, 3 guessed yes, 4 guessed no, 0 unknown.
            known = {b"1": True, b"3": True, b"2": False, b"4": False}.get(answer[-1] if answer else b"0")
            pause = NETWORK_FRESH_SECONDS
        except (OSError, subprocess.SubprocessError):
            known, pause = None, NETWORK_PAUSE
        self._known = self._clock() + pause, known
        return known
