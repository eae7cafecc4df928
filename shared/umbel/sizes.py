"""Bounds on what a device may say. Both sides cut text for people to them, and refuse other values beyond them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from umbel.errors import MessageError

SENTENCE, WORD = 1000, 200
"""Characters of a reason, and of a version, a label or a metric's name."""
ENTRIES = 64
"""Labels, reasons or imports in one message."""
METRICS, NUMBERS = 1000, 10_000
"""Metrics of one outcome, and all their numbers."""

S = TypeVar("S", bound=Struct)


def cut(text: str, most: int) -> str:
    """The text, or its beginning and an ellipsis, at most `most` characters; without NUL, which PostgreSQL does not take."""
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def cut_texts(message: S, *texts: str) -> S:
    """The message with these fields - a text, texts, or texts by name - cut to WORD characters and ENTRIES entries.

    A field `reason` or `reasons` holds sentences. A message that fits is returned as it is.
    """
    changed = {name: fitting for name in texts if (fitting := _cut_field(message, name)) != getattr(message, name)}
    return msgspec.structs.replace(message, **changed) if changed else message


def _cut_field(message: Struct, name: str) -> Any:
    most = SENTENCE if name.startswith("reason") else WORD
    match getattr(message, name):
        case str(text):
            return cut(text, most)
        case list(texts):
            return [cut(text, most) for text in texts[:ENTRIES]]
        case dict(texts):
            return {cut(key, most): cut(value, most) for key, value in list(texts.items())[:ENTRIES]}


def check_labels(labels: Mapping[str, str], what: str) -> None:
    """Raise MessageError when there are more labels than a device may have, or longer ones."""
    longest = max((len(text) for label in labels.items() for text in label), default=0)
    if len(labels) > ENTRIES or longest > WORD:
        raise MessageError(
            f"{what} should be at most {ENTRIES} with names and values of at most {WORD} characters, "
            f"got {len(labels)} of up to {longest} characters"
        )


def check_metrics(metrics: Mapping[str, float | Sequence[float]]) -> None:
    """Raise MessageError when there are more metrics than any task has."""
    numbers = sum(len(value) if isinstance(value, list) else 1 for value in metrics.values())
    longest = max(map(len, metrics), default=0)
    if len(metrics) > METRICS or numbers > NUMBERS or longest > WORD:
        raise MessageError(
            f"at most {METRICS} metrics of {NUMBERS} numbers, with names of at most {WORD} characters, were expected; "
            f"got {len(metrics)} of {numbers} numbers, with names of up to {longest}"
        )
