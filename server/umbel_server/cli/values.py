"""Values of options: spans of time, sizes, pairs, goals, budgets, checkpoints."""

import math
import re
from collections.abc import Sequence
from typing import Any

import typer

SIZES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

SPANS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

_BUDGETS = "hours=NUMBER, rounds=NUMBER or bytes=SIZE, such as hours=2,bytes=500MB"


def seconds_of(text: str, option: str) -> float:
    """The seconds of a span such as 90s, 30m, 24h or 7d, given to `option`; raises BadParameter."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([a-z]+)", text.strip())
    seconds = float(match[1]) * SPANS.get(match[2], math.nan) if match else math.nan
    if not seconds > 0:
        raise typer.BadParameter(
            f"expected a span of time such as 90s, 30m, 24h or 7d, got {text!r}", param_hint=option
        )
    return seconds


def size(text: str) -> int:
    """Bytes of a size such as 500MB (10^6 bytes a MB); raises ValueError."""
    digits = text.rstrip("BkMGT ")
    unit = text[len(digits) :].strip()
    if unit not in SIZES:
        raise ValueError(text)
    return round(_finite(_finite(digits) * SIZES[unit]))


def written(number: str) -> str:
    """Return a number's text for int or float. Raises ValueError on forms that only Python reads: 1_000, or non-ASCII digits."""
    if not number.isascii() or "_" in number:
        raise ValueError(number)
    return number


def pair(text: str, option: str) -> tuple[str, str]:
    """NAME=VALUE, given to `option`, as its two halves; raises BadParameter."""
    name, sign, value = (part.strip() for part in text.partition("="))
    if not (name and sign and value):
        raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint=option)
    return name, value


def number_pair(text: str, option: str) -> tuple[str, float]:
    """NAME=NUMBER, given to `option`, as a name and a number; raises BadParameter."""
    name, _, value = (part.strip() for part in text.partition("="))
    try:
        return name, _finite(value)
    except ValueError as error:
        raise typer.BadParameter(f"expected NAME=NUMBER, got {text!r}", param_hint=option) from error


def goal(text: str) -> dict[str, Any]:
    """The settings of a goal METRIC>=VALUE; an empty text sets no goal. Raises BadParameter."""
    if not text.strip():
        return {"until": "", "at_least": 0.0}
    metric, sign, value = (part.strip() for part in text.partition(">="))
    try:
        if not (metric and sign):
            raise ValueError
        return {"until": metric, "at_least": _finite(value)}
    except ValueError as error:
        sentence = f"expected METRIC>=VALUE such as accuracy>=0.97, got {text!r}"
        raise typer.BadParameter(sentence, param_hint="--until") from error


def budget(texts: Sequence[str]) -> dict[str, Any]:
    """The settings of budgets, each a comma-separated list of hours=, rounds= and bytes=; raises BadParameter."""
    settings: dict[str, Any] = {}
    for text in (part.strip() for whole in texts for part in whole.split(",")):
        name, _, value = (part.strip() for part in text.partition("="))
        try:
            setting, amount = _budget(name, value)
        except ValueError as error:
            raise typer.BadParameter(f"expected {_BUDGETS}; got {text!r}", param_hint="--budget") from error
        if setting in settings:
            raise typer.BadParameter(f"{name} is given twice", param_hint="--budget")
        settings[setting] = amount
    return settings


def _budget(name: str, value: str) -> tuple[str, float]:
    match name:
        case "hours":
            return "budget_hours", _at_least(0, _finite(value))
        case "rounds":
            return "rounds", _at_least(1, int(written(value)))
        case "bytes":
            return "budget_bytes", _at_least(0, size(value))
    raise ValueError(name)


def checkpoint(text: str) -> dict[str, Any]:
    """The request fields for RUN or RUN@ROUND, the checkpoint to start from; none for "". Raises BadParameter."""
    if not text:
        return {}
    run, sign, number = (part.strip() for part in text.partition("@"))
    if not run or (sign and not (number.isascii() and number.isdigit() and len(number) <= 10)):
        sentence = f"expected RUN or RUN@ROUND such as latest@12, got {text!r}"
        raise typer.BadParameter(sentence, param_hint="--from-checkpoint")
    return {"from_run": run} | ({"from_round": int(number)} if sign else {})


def _finite(number: str | float) -> float:
    value = float(written(number) if isinstance(number, str) else number)
    if not math.isfinite(value):
        raise ValueError(number)
    return value


def _at_least(least: float, value: float) -> float:
    if value < least:
        raise ValueError(value)
    return value
