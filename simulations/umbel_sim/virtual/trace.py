"""Availability from a measured trace: a CSV file of intervals.

The columns are `device,start,end,online,charging,metered[,battery]`: a device number (0 ...), virtual seconds, and 0 or 1
(battery: a share). A device's intervals follow each other without a gap, and the trace repeats after its end. A fleet with
more devices than the trace uses the trace's devices again in turn.
"""

import bisect
import csv
import math
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from umbel.errors import UmbelError
from umbel_sim.virtual.availability import Condition

COLUMNS = ("device", "start", "end", "online", "charging", "metered")


class Trace:
    """An Availability read from a file; raises UmbelError with the line number when the file is not valid."""

    def __init__(self, path: Path) -> None:
        rows = _read(path)
        self._starts: list[list[float]] = []
        self._conditions: list[list[Condition]] = []
        self._first: list[float] = []
        self._period: list[float] = []
        for device in sorted(rows):
            own = sorted(rows[device])
            for (_, line, one), (start, next_line, _) in pairwise(own):
                if one.until != start:
                    kind = "a gap" if one.until < start else "an overlap"
                    raise UmbelError(
                        f"{path}: device {device} has {kind} between line {line}, which ends at {one.until:g}, and line "
                        f"{next_line}, which starts at {start:g}; its intervals should follow each other"
                    )
            self._starts.append([start for start, _, _ in own])
            self._conditions.append([condition for _, _, condition in own])
            self._first.append(own[0][0])
            self._period.append(own[-1][2].until - own[0][0])

    def at(self, device: int, time: float) -> Condition:
        """As Availability."""
        own = device % len(self._starts)
        conditions, period = self._conditions[own], self._period[own]
        laps, within = divmod(time - self._first[own], period)
        # The division is rounded: about the second of a change it may name the interval before or after.
        index = bisect.bisect_right(self._starts[own], within + self._first[own]) - 2
        if index < 0:
            index, laps = index % len(conditions), laps - 1
        while (until := conditions[index].until + laps * period) <= time:
            index += 1
            if index == len(conditions):
                index, laps = 0, laps + 1
        found = conditions[index]
        return Condition(found.online, found.charging, found.metered, found.battery, until)


def _read(path: Path) -> dict[int, list[tuple[float, int, Condition]]]:
    rows: dict[int, list[tuple[float, int, Condition]]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (table.fieldnames or ())]:
                raise UmbelError(f"{path}: column {missing[0]!r} is missing; a trace has {','.join(COLUMNS)}[,battery]")
            for line, row in enumerate(table, 2):
                try:
                    device, start, condition = int(row["device"]), float(row["start"]), _condition(row)
                except (ValueError, TypeError) as error:
                    raise UmbelError(
                        f"{path}, line {line}: expected {','.join(COLUMNS)} as numbers: {error}"
                    ) from error
                if device < 0 or not -math.inf < start < condition.until < math.inf:
                    raise UmbelError(
                        f"{path}, line {line}: expected a device from 0 on and start < end, got {dict(row)}"
                    )
                rows[device].append((start, line, condition))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UmbelError(f"{path}: expected a trace in CSV, could not read one: {_reason(error)}") from error
    if not rows:
        raise UmbelError(f"{path}: expected a trace of at least one interval, got none")
    return rows


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _condition(row: dict[str, str]) -> Condition:
    flags = [int(row[name]) for name in ("online", "charging", "metered")]
    if any(flag not in (0, 1) for flag in flags):
        raise ValueError(f"online, charging and metered are 0 or 1, got {flags}")
    battery = float(row.get("battery") or 1.0)
    if not 0 <= battery <= 1:
        raise ValueError(f"battery is a share between 0 and 1, got {battery}")
    online, charging, metered = map(bool, flags)
    return Condition(online, charging, metered, battery, float(row["end"]))
