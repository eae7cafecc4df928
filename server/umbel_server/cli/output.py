"""The output of the CLI: tables for people, JSON for machines."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from umbel.printable import printable

STATE_STYLES = {
    "running": "cyan",
    "paused": "yellow",
    "finished": "green",
    "stopped": "dim",
    "open": "cyan",
    "committed": "green",
    "abandoned": "red",
    "offered": "dim",
    "accepted": "yellow",
    "uploaded": "cyan",
    "folded": "green",
    "declined": "magenta",
    "cancelled": "dim",
}
"""Colours of the states of runs, rounds and assignments; a state without an entry went wrong and is red."""

console = Console()


def plain(text: str) -> str:
    """A text from devices or people, escaped so that the terminal shows exactly its characters."""
    return escape(printable(text))


def print_json(value: Any) -> None:
    """Print `value`, which may hold structs, as indented JSON."""
    print(json.dumps(msgspec.to_builtins(value), indent=2, sort_keys=True))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Print rows under their columns, or the sentence `empty` when there are none."""
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    table.columns[0].no_wrap = True  # a name that is cut short cannot be typed or copied
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        console.print(table)
    else:
        console.print(empty)


def ago(moment: float) -> str:
    """The time since a Unix time, in the largest fitting unit."""
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def span_text(seconds: float) -> str:
    """A time in seconds, in its one or two largest units."""
    whole = round(seconds)
    if seconds < 9.95:
        return f"{max(0.0, seconds):.2g} s"
    if whole < 100:
        return f"{whole} s"
    if whole < 2 * 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 48 * 60 else f"{minutes / 1440:.1f} days"


def state_style(state: str) -> str:
    """The colour of a state."""
    return STATE_STYLES.get(state, "red")


def state_text(state: str) -> str:
    """A state in its colour, as markup."""
    return f"[{state_style(state)}]{plain(state)}[/]"


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Metrics in one line, as markup."""
    return "  ".join(f"{plain(name)} {value:.4g}" for name, value in sorted(metrics.items())) or "-"


def duration_text(ms: float) -> str:
    """Milliseconds in ms, or in µs below one."""
    return f"{ms:.3g} ms" if ms >= 1 else f"{ms * 1000:.0f} µs"


def size_text(size: float) -> str:
    """Bytes in B, kB, MB or GB."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= length:
            return f"{size / length:.1f} {unit}"
    return f"{size:.0f} B"
