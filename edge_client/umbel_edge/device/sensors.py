"""Sensors of the device: battery, load, temperature, memory, disk and network.

Linux answers through files in /proc and /sys. Elsewhere psutil is asked, where it is installed.
"""

import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NETWORK_FRESH_SECONDS = 10.0
"""The network is asked about again after this time."""
NETWORK_TIMEOUT = 1.0
NETWORK_PAUSE = 300.0
"""The network is asked about again after this time when no answer came."""

Sensor = Callable[[], Any]
"""Returns one field of umbel.conditions.Readings; raises, or returns None, when that cannot be measured here."""

_ROOT = Path("/")


def system_sensors(folder: Path, clock: Callable[[], float], root: Path = _ROOT) -> dict[str, Sensor]:
    """The system's sensors by field of umbel.conditions.Readings.

    `folder` says which disk counts, `clock` is monotonic, `root` holds `proc` and `sys`.
    """
    system = _linux(root) if (root / "proc" / "meminfo").exists() else _with_psutil()
    return {
        **system,
        "metered": NetworkSensor(clock, shutil.which("busctl")).metered,
        "load": LoadSensor(clock).of_others,
        "free_disk_mb": lambda: shutil.disk_usage(folder).free / 1e6,
    }


def resident_mb() -> float:
    """Resident memory of this process in MB (10^6 bytes); 0 where that cannot be measured."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return float(read(_psutil_resident_mb) or 0.0)


def read(sensor: Sensor) -> Any:
    """The sensor's reading, or None when this device has no such sensor."""
    try:
        return sensor()
    except (OSError, AttributeError, NotImplementedError, RuntimeError, ValueError, ImportError):
        return None  # psutil lacks the functions that the platform cannot serve


def _linux(root: Path) -> dict[str, Sensor]:
    supplies = LinuxPower(root / "sys" / "class" / "power_supply")

    def free_memory() -> float:
        lines = (root / "proc" / "meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024 / 1e6

    return {
        "battery": supplies.battery,
        "charging": supplies.charging,
        "temperature": lambda: _hottest(_linux_temperatures(root / "sys" / "class")),
        "free_memory_mb": free_memory,
    }


class LinuxPower:
    """Batteries and chargers as the kernel lists them in `folder` (its ABI: sysfs-class-power)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def battery(self) -> float | None:
        """The charge of the first battery that tells, from 0 to 1."""
        for battery in self._of("Battery"):
            charge = _number(battery / "capacity")
            if charge is not None:
                return min(1.0, max(0.0, charge / 100))
        return None

    def charging(self) -> bool | None:
        """Whether a charger is connected, or a battery fills; None when nothing says so."""
        online = [_number(charger / "online") for charger in self._of("Mains", "USB", "Wireless")]
        told = [value == 1 for value in online if value is not None]
        states = [_text(battery / "status") for battery in self._of("Battery")]
        told += [state != "Discharging" for state in states if state in ("Charging", "Full", "Discharging")]
        return any(told) if told else None

    def _of(self, *types: str) -> Iterator[Path]:
        if self._folder.is_dir():
            # A pen or a mouse has a battery too, of scope "Device".
            yield from (
                supply
                for supply in sorted(self._folder.iterdir())
                if _text(supply / "type") in types and _text(supply / "scope") != "Device"
            )


def _linux_temperatures(classes: Path) -> Iterator[float | None]:
    """Degrees Celsius of the sensors of the hardware monitors, or of the thermal zones where there are none."""
    monitors = sorted(classes.glob("hwmon/hwmon*/temp*_input")) + sorted(
        classes.glob("hwmon/hwmon*/device/temp*_input")
    )
    for path in monitors or sorted(classes.glob("thermal/thermal_zone*/temp")):
        value = _number(path)
        yield value / 1000 if value is not None else None


def _hottest(values: Iterator[float | None]) -> float | None:
    # Sensors that are not connected report the end of their scale; those values are dropped.
    return max((value for value in values if value is not None and -40 < value < 150), default=None)


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _with_psutil() -> dict[str, Sensor]:
    """Sensors that psutil has; each raises ImportError where it is not installed."""

    def battery() -> float | None:
        import psutil

        found = psutil.sensors_battery()
        return min(1.0, max(0.0, float(found.percent) / 100)) if found is not None else None

    def charging() -> bool | None:
        import psutil

        found = psutil.sensors_battery()
        return bool(found.power_plugged) if found is not None and found.power_plugged is not None else None

    def temperature() -> float | None:
        import psutil

        groups = psutil.sensors_temperatures().values()
        return _hottest(float(sensor.current) for sensors in groups for sensor in sensors)

    def free_memory() -> float:
        import psutil

        return float(psutil.virtual_memory().available) / 1e6

    return {"battery": battery, "charging": charging, "temperature": temperature, "free_memory_mb": free_memory}


def _psutil_resident_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e6


class LoadSensor:
    """The load average without the agent's own share, so that training does not break the rule about load."""

    def __init__(
        self,
        clock: Callable[[], float],
        cpu: Callable[[], float] = time.process_time,
        system: Callable[[], float] = lambda: os.getloadavg()[0],
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
        return max(0.0, self._system() - self._own) / (os.cpu_count() or 1)


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
