"""Conditions of work on a device: the rules of its owner and of a run, and the check of a device's readings against them."""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from msgspec import Struct

_WINDOW = re.compile(r"(\d{1,2})-(\d{1,2})")
NEVER = "never"
"""The value of `hours` when no hour is left, as after merging "8-12" with "14-18"."""


ABSOLUTE_ZERO = -273.15


class Rules(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The conditions under which a device may work; the defaults demand nothing.

    `min_battery` is a share of the full charge. `max_load` is the 1-minute load average without the agent's own load,
    divided by the number of cores. `max_temperature` is in degrees Celsius, of the hottest sensor. Memory and disk are in
    MB (10^6 bytes). `hours` are windows of whole local hours, such as "22-6" or "0-6, 22-24"; a window ends before its
    second hour. `unknown` decides about a reading that the device cannot take: "allow" counts the rule as kept, "refuse"
    as broken. Decoding refuses unknown fields, because a rule that this version does not understand must not be ignored.
    Raises ValueError on values outside their range.
    """

    min_battery: float = 0.0
    charging: bool = False
    unmetered: bool = False
    max_load: float | None = None
    max_temperature: float | None = None
    hours: str = ""
    min_free_memory_mb: float = 0.0
    min_free_disk_mb: float = 0.0
    min_examples: int = 0
    unknown: Literal["allow", "refuse"] = "allow"

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_battery <= 1.0:
            raise ValueError(f"min_battery is a share between 0 and 1, got {self.min_battery}")
        for name in ("max_load", "min_free_memory_mb", "min_free_disk_mb", "min_examples"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} should be at least 0, got {value}")
        if self.max_temperature is not None and not self.max_temperature > ABSOLUTE_ZERO:
            raise ValueError(f"max_temperature is in degrees Celsius, got {self.max_temperature}")
        hours_of(self.hours)

    @property
    def ask_nothing(self) -> bool:
        """Whether these rules demand nothing, so that all readings keep them."""
        return self in _NO_RULES

    def merge(self, other: "Rules") -> "Rules":
        """Rules with the stricter value of both in every field: readings that keep the merged rules keep both."""
        common = hours_of(self.hours) & hours_of(other.hours)
        return Rules(
            max(self.min_battery, other.min_battery),
            self.charging or other.charging,
            self.unmetered or other.unmetered,
            _least(self.max_load, other.max_load),
            _least(self.max_temperature, other.max_temperature),
            _windows(common),
            max(self.min_free_memory_mb, other.min_free_memory_mb),
            max(self.min_free_disk_mb, other.min_free_disk_mb),
            max(self.min_examples, other.min_examples),
            "refuse" if "refuse" in (self.unknown, other.unknown) else "allow",
        )


class Readings(Struct, frozen=True, forbid_unknown_fields=True):
    """A device's measurements of itself, in the units of Rules; None where it cannot measure. `hour` is local, 0 to 23.

    Raises ValueError on an impossible battery or hour, such as a battery in percent.
    """

    battery: float | None = None
    charging: bool | None = None
    metered: bool | None = None
    load: float | None = None
    temperature: float | None = None
    hour: int | None = None
    free_memory_mb: float | None = None
    free_disk_mb: float | None = None
    examples: int | None = None

    def __post_init__(self) -> None:
        if self.battery is not None and not 0.0 <= self.battery <= 1.0:
            raise ValueError(f"battery is a share between 0 and 1, got {self.battery}")
        if self.hour is not None and not 0 <= self.hour <= 23:
            raise ValueError(f"hour is between 0 and 23, got {self.hour}")


class Violation(NamedTuple):
    """One broken rule: the name of the condition, the value found, and both as a phrase for people."""

    condition: str
    found: str
    phrase: str


def violations(rules: Rules, readings: Readings) -> tuple[Violation, ...]:
    """The rules that `readings` break, in the order of Rules' fields."""
    return tuple(_broken(rules, readings))


def violated(rules: Rules, readings: Readings) -> tuple[str, ...]:
    """The broken rules as phrases: "battery 0.12 < 0.3", "not charging", "metered network"; none when all hold."""
    return tuple(violation.phrase for violation in _broken(rules, readings))


def hours_of(text: str) -> frozenset[int]:
    """The hours, 0 to 23, of the windows in `text`; every hour when `text` is empty. Raises ValueError on other text."""
    if not text:
        return frozenset(range(24))
    if text == NEVER:
        return frozenset()
    found: set[int] = set()
    for part in text.split(","):
        window = _WINDOW.fullmatch(part.strip())
        start, stop = (int(window[1]), int(window[2])) if window else (0, 0)
        if start == stop or start > 23 or stop > 24:
            raise ValueError(f'hours are windows of whole hours such as "22-6" or "0-6, 22-24", got {text!r}')
        found.update(range(start, stop) if start < stop else [*range(start, 24), *range(stop)])
    return frozenset(found)


def _windows(hours: frozenset[int]) -> str:
    if len(hours) == 24:
        return ""
    starts = [hour for hour in sorted(hours) if (hour - 1) % 24 not in hours]
    windows = []
    for start in starts:
        length = next(n for n in range(1, 24) if (start + n) % 24 not in hours)
        windows.append(f"{start}-{(start + length) % 24 or 24}")
    return ", ".join(windows) or NEVER


_NO_RULES = (Rules(), Rules(unknown="refuse"))


def _least(one: float | None, other: float | None) -> float | None:
    values = [value for value in (one, other) if value is not None]
    return min(values) if values else None


def _broken(rules: Rules, now: Readings) -> Iterator[Violation]:
    def unknown(condition: str) -> Iterator[Violation]:
        if rules.unknown == "refuse":
            yield _plain(condition, "unknown")

    if rules.min_battery > 0:
        if now.battery is None:
            yield from unknown("battery")
        elif now.battery < rules.min_battery:
            yield _plain("battery", f"{now.battery:.3g} < {rules.min_battery:g}")
    if rules.charging:
        if now.charging is None:
            yield from unknown("charging")
        elif not now.charging:
            yield Violation("charging", "no", "not charging")
    if rules.unmetered:
        if now.metered is None:
            yield from unknown("network")
        elif now.metered:
            yield Violation("network", "metered", "metered network")
    for condition, most, value, unit in (
        ("load", rules.max_load, now.load, ""),
        ("temperature", rules.max_temperature, now.temperature, " C"),
    ):
        if most is not None:
            if value is None:
                yield from unknown(condition)
            elif value > most:
                yield _plain(condition, f"{value:.3g}{unit} > {most:g}{unit}")
    if rules.hours:
        if now.hour is None:
            yield from unknown("hours")
        elif now.hour not in hours_of(rules.hours):
            phrase = f"hour {now.hour} is outside {rules.hours}"
            yield Violation("hours", f"{now.hour} is outside {rules.hours}", phrase)
    for condition, least, value, unit in (
        ("free memory", rules.min_free_memory_mb, now.free_memory_mb, " MB"),
        ("free disk", rules.min_free_disk_mb, now.free_disk_mb, " MB"),
        ("examples", rules.min_examples, now.examples, ""),
    ):
        if least > 0:
            if value is None:
                yield from unknown(condition)
            elif value < least:
                yield _plain(condition, f"{value:.0f}{unit} < {least:g}{unit}")


def _plain(condition: str, found: str) -> Violation:
    return Violation(condition, found, f"{condition} {found}")
