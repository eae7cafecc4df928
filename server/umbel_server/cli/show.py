"""How the CLI shows things: tables for people, JSON for machines."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

StateOption = Annotated[
    Path, typer.Option("--state", envvar="UMBEL_STATE", help="the server's state folder, made by 'umbel init'")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for machines")]
RunArgument = Annotated[str, typer.Argument(help="the run's id, the beginning of it, or 'latest'")]
DEFAULT_STATE = Path("umbel-state")

console = Console()


def print_json(value: Any) -> None:
    """Print `value` as indented JSON."""
    print(json.dumps(value, indent=2, sort_keys=True))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Print rows under their columns, or the sentence `empty` when there are none."""
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        console.print(table)
    else:
        console.print(empty)


def ago(moment: float) -> str:
    """How long ago a Unix time was, in the largest fitting unit."""
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Metrics in one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items())) or "-"


def duration_text(ms: float) -> str:
    """Milliseconds in ms, or in µs below one."""
    return f"{ms:.3g} ms" if ms >= 1 else f"{ms * 1000:.0f} µs"


def size_text(size: float) -> str:
    """Bytes in kB or MB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
