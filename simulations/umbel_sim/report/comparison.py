"""Several variants of a simulation, side by side: a table, its file, and a picture."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from umbel.atomic import write_atomically
from umbel.errors import UmbelError
from umbel_sim.report import plots
from umbel_sim.report.result import Variant


def rows(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """One row a variant: medians over its seeds."""
    return [_row(variant) for variant in variants]


def _row(variant: Variant) -> dict[str, Any]:
    results = variant.results
    metric, settings = results[0].metric, results[0].settings
    row: dict[str, Any] = {**variant.changes, "seeds": len(results)}
    for name in dict.fromkeys((metric, "loss")):
        row[name] = _median([result.rows[-1].get(f"test_{name}") for result in results])
    if settings.until:
        reached = [result.rounds_to(settings.at_least, settings.until) for result in results]
        hours = [result.hours_to(settings.at_least, settings.until) for result in results]
        row |= {f"rounds to {settings.at_least:g}": _median(reached), "hours to it": _median(hours)}
    row["rounds"] = _median([result.rows[-1]["round"] for result in results])
    row["virtual_hours"] = _median([result.rows[-1]["virtual_hours"] for result in results])
    row["bytes"] = _median([sum(own.get("bytes_down", 0) + own.get("bytes_up", 0) for own in r.rows) for r in results])
    return row


def _median(values: Sequence[float | None]) -> float | None:
    """The median; None when more than half of the values are not there, as they count as infinite."""
    there = sorted(value for value in values if value is not None)
    if len(there) * 2 <= len(values) and len(there) < len(values):
        return None
    return statistics.median([*there, *[float("inf")] * (len(values) - len(there))])


def save(variants: Sequence[Variant], folder: Path) -> list[dict[str, Any]]:
    """Write comparison.json, comparison.png and a folder for each simulation; returns the rows.

    Raises UmbelError when the folder cannot be written.
    """
    table = rows(variants)
    for variant in variants:
        for result in variant.results:
            name = "_".join(f"{key}={value}" for key, value in variant.changes.items()).replace("/", "-")
            result.save(folder / f"{name}_seed={result.settings.seed}")
    picture = plots.comparison(
        [(variant.label, variant.results) for variant in variants], variants[0].results[0].metric
    )
    try:
        write_atomically(folder / "comparison.json", (json.dumps(table, indent=1) + "\n").encode())
        write_atomically(folder / "comparison.png", plots.png(picture))
    except OSError as error:
        raise UmbelError(f"{folder}: the comparison cannot be written: {error.strerror or error}") from error
    return table
