"""Spans of time on the command line: 90d, 24h, 30min."""

import math

import typer

from umbel_server.cli.runs.options import written

UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def seconds_of(text: str, option: str) -> float:
    """The seconds of a number with a unit, given to `option`; raises BadParameter."""
    digits = text.strip().rstrip("adhimnsw")
    unit = text.strip()[len(digits) :]
    try:
        seconds = float(written(digits)) * UNITS[unit]
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError
    except (KeyError, ValueError) as error:
        sentence = f"expected a number with one of {', '.join(UNITS)}, such as 90d; got {text!r}"
        raise typer.BadParameter(sentence, param_hint=option) from error
    return seconds
