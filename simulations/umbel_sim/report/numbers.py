"""Numbers as people read them."""

from typing import Any

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def shown(name: str, value: Any) -> str:
    """A figure with the unit that its name implies."""
    if value is None:
        return "not yet"
    if isinstance(value, bool) or not isinstance(value, int | float):
        if isinstance(value, dict):
            return ", ".join(f"{key}={shown(key, own)}" for key, own in value.items()) or "-"
        return (", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)) or "-"
    if name.startswith("bytes"):
        return size(value)
    if name.endswith("seconds"):
        return duration(value)
    if "hours" in name:
        return duration(value * 3600)
    if name.endswith("share"):
        return f"{value:.1%}"
    if name == "joules":
        return f"{_short(value / 3600)} Wh" if value >= 36 else f"{value:.3g} J"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 9999.5 <= abs(value) < 1e15 else f"{value:.4g}"


def size(count: float) -> str:
    """Bytes in units of 1,000."""
    for unit in UNITS:
        if count < 999.5 or unit == UNITS[-1]:
            break
        count /= 1000
    return f"{_short(count)} {unit}"


def duration(seconds: float) -> str:
    """A time in the largest unit of which there are two."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{_short(seconds / length)} {unit}"
    return f"{_short(seconds)} s"


def _short(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"
