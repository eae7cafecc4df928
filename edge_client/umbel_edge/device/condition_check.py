"""Checks rules (umbel.conditions) against the device's readings."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from umbel.conditions import Readings, Rules, Violation, violations
from umbel.errors import NOT_DECODED
from umbel_edge.device.sensors import Sensor, read, system_sensors

FRESH_SECONDS = 1.0
"""Seconds for which a reading is reused, because rules are checked before every batch."""
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
"""The reading that each rule needs."""


class ConditionCheck:
    """Checks rules against the readings of `sensors`, or of `file` (JSON, the fields of umbel.conditions.Readings).

    `folder` says which disk counts; without `sensors` the system's are read. `examples` counts examples, `clock` is
    monotonic, `now` the wall clock, both in seconds. Only the readings that the rules need are taken. Where the file has
    no `hour` or no `examples`, they are filled in. Safe to call from several threads.
    """

    def __init__(
        self,
        folder: Path,
        examples: Callable[[], int],
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sensors: Mapping[str, Sensor] | None = None,
    ) -> None:
        self._file, self._clock = file, clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Any]] = {}
        self._read_file: tuple[tuple[int, int, int], Readings | Violation] | None = None
        self._always: dict[str, Sensor] = {
            "hour": lambda: time.localtime(now()).tm_hour,
            "examples": examples,
        }
        self._sensors = sensors if sensors is not None else system_sensors(folder, clock)

    def violations(self, rules: Rules) -> tuple[Violation, ...]:
        """The rules that do not hold now; a damaged file of readings is one violation, whatever the rules are."""
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
            self._known[name] = known = now, read(self._sensors[name])
        return known[1]

    def _given(self, file: Path) -> Readings | Violation:
        """The file's readings, or the violation that it is damaged; read again when the file has changed."""
        try:
            found = os.stat(file)
            version = found.st_mtime_ns, found.st_size, found.st_ino
            if self._read_file is None or self._read_file[0] != version:
                self._read_file = version, _parse(file)
            return self._read_file[1]
        except OSError as error:
            return _damaged(file, os.strerror(error.errno or 0))


def _parse(file: Path) -> Readings | Violation:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Readings)
    except NOT_DECODED as error:
        return _damaged(file, str(error))


def _damaged(file: Path, why: str) -> Violation:
    return Violation("readings", f"{file.name}: {why}", f"readings {file.name}: {why}")
