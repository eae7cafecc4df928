"""What the device measures of itself, and whether it may work now."""

import math
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from umbel.conditions import Readings, Rules, Violation, violations
from umbel.errors import NOT_DECODED

FRESH_SECONDS = 1.0
"""A reading is used again for so long: conditions are asked for before every batch."""
NETWORK_FRESH_SECONDS = 10.0
NETWORK_TIMEOUT = 1.0
NETWORK_PAUSE = 300.0
"""So long nobody is asked again about the network after no answer came."""
_NEEDS: dict[str, str] = {
    "min_battery": "battery",
    "charging": "charging",
    "unmetered": "metered",
    "max_load": "load",
    "max_temperature": "temperature",
    "hours": "hour",
    "min_free_memory_mb": "free_memory_mb",
    "min_free_disk_mb": "free_disk_mb",
    "min_examples": "examples",
}
"""Which reading each rule is about."""


class Conditions:
    """Judges rules by the system's readings, or by those in `file` (JSON, Readings' fields) when there is one.

    `folder` says which disk counts, `examples` counts examples, `clock` is monotonic, `now` the wall clock. Only what the
    rules ask for is measured. The file's own gaps for `hour` and `examples`, which are never unknown, are filled.
    Safe to call from several threads.
    """

    def __init__(
        self,
        folder: Path,
        examples: Callable[[], int],
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._file, self._clock = file, clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Any]] = {}
        self._read_file: tuple[tuple[int, int, int], Readings | Violation] | None = None
        self._always: dict[str, Callable[[], Any]] = {
            "hour": lambda: time.localtime(now()).tm_hour,
            "examples": examples,
        }
        network = _Network(clock, shutil.which("busctl"))
        self._system: dict[str, Callable[[], Any]] = {
            "battery": _battery,
            "charging": _charging,
            "metered": network.metered,
            "load": _Load(clock).of_others,
            "temperature": _temperature,
            "free_memory_mb": lambda: psutil.virtual_memory().available / 1e6,
            "free_disk_mb": lambda: psutil.disk_usage(str(folder)).free / 1e6,
        }

    def violations(self, rules: Rules) -> tuple[Violation, ...]:
        """The rules that do not hold now; a damaged file of readings is one violation, whatever the rules."""
        if self._file is None and rules.ask_nothing:
            return ()
        with self._lock:
            given = self._given(self._file) if self._file is not None else None
            if isinstance(given, Violation):
                return (given,)
            wanted = [reading for rule, reading in _NEEDS.items() if getattr(rules, rule) != getattr(Rules(), rule)]
            return violations(rules, Readings(**{reading: self._reading(reading, given) for reading in wanted}))

    def _reading(self, name: str, given: Readings | None) -> Any:
        value = getattr(given, name) if given is not None else None
        if value is not None:
            return value
        if name in self._always:
            return self._always[name]()
        if given is not None:
            return None
        now = self._clock()
        known = self._known.get(name)
        if known is None or now - known[0] >= FRESH_SECONDS:
            self._known[name] = known = now, _or_unknown(self._system[name])
        return known[1]

    def _given(self, file: Path) -> Readings | Violation:
        """The file's readings, read again when it has changed."""
        try:
            found = os.stat(file)
            version = found.st_mtime_ns, found.st_size, found.st_ino
            if self._read_file is None or self._read_file[0] != version:
                self._read_file = version, _parse(file)
            return self._read_file[1]
        except OSError as error:
            return _damaged(file, os.strerror(error.errno or 0))


def resident_mb() -> float:
    """Resident memory of this process in MB (10^6 bytes)."""
    return float(psutil.Process().memory_info().rss) / 1e6


def _parse(file: Path) -> Readings | Violation:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Readings)
    except NOT_DECODED as error:
        return _damaged(file, str(error))


def _damaged(file: Path, why: str) -> Violation:
    return Violation("readings", f"{file.name}: {why}", f"readings {file.name}: {why}")


def _or_unknown(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, AttributeError, NotImplementedError, RuntimeError, ValueError):
        return None  # psutil lacks what the platform lacks: that is what unknown means


def _battery() -> float | None:
    battery = psutil.sensors_battery()
    return min(1.0, max(0.0, float(battery.percent) / 100)) if battery is not None else None


def _charging() -> bool | None:
    battery = psutil.sensors_battery()
    return bool(battery.power_plugged) if battery is not None and battery.power_plugged is not None else None


def _temperature() -> float | None:
    found = [sensor.current for sensors in psutil.sensors_temperatures().values() for sensor in sensors]
    # Sensors that are not connected report the end of their scale.
    return max((float(value) for value in found if -40 < value < 150), default=None)


class _Load:
    """The load average without what this process adds to it: training must not stop because it trains."""

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
            # The decay of the kernel's own 1-minute average.
            self._own += (used - self._own) * (1 - math.exp(-elapsed / 60))
            self._last = now, cpu
        return max(0.0, self._system() - self._own) / (psutil.cpu_count() or 1)


class _Network:
    """NetworkManager's opinion of the default connection, asked for with busctl."""

    def __init__(self, clock: Callable[[], float], program: str | None) -> None:
        self._clock, self._program = clock, program
        self._known: tuple[float, bool | None] = float("-inf"), None

    def metered(self) -> bool | None:
        """Whether bytes cost money here; None when nobody knows. Takes at most NETWORK_TIMEOUT seconds."""
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
