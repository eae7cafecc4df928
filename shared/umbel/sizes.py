"""Size limits of the messages of a device. Device and server cut longer texts for people, and refuse other values."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from umbel.errors import MessageError

SENTENCE, WORD = 1000, 200
"""The most characters of a reason (SENTENCE); of a version, a label or the name of a metric (WORD)."""
ENTRIES = 64
"""The most labels, reasons or imports in one message."""
METRICS, NUMBERS = 1000, 10_000
"""The most metrics in one outcome, and the most numbers in all of them together."""

S = TypeVar("S", bound=Struct)


def cut(text: str, most: int) -> str:
    """The text, cut to `most` characters that end with an ellipsis when it is longer.

    NUL characters, which PostgreSQL refuses, are replaced.
    """
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def cut_texts(message: S, *texts: str) -> S:
    """The message with the fields named in `texts` cut to ENTRIES entries of WORD characters each.

    A field holds a text, a list of texts, or a mapping of texts. Entries of `reason` and `reasons` may have SENTENCE
    characters. A message that is within the limits is returned unchanged.
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
    """Raise MessageError, beginning with `what`, when there are more labels, or longer ones, than a device may have."""
    longest = max((len(text) for label in labels.items() for text in label), default=0)
    if len(labels) > ENTRIES or longest > WORD:
        raise MessageError(
            f"{what} should be at most {ENTRIES} with names and values of at most {WORD} characters, "
            f"got {len(labels)} of up to {longest} characters"
        )


def check_metrics(metrics: Mapping[str, float | None | Sequence[float | None]]) -> None:
    """Raise MessageError when there are more metrics or numbers, or longer names, than one outcome may have."""
    numbers = sum(len(value) if isinstance(value, list) else 1 for value in metrics.values())
    longest = max(map(len, metrics), default=0)
    if len(metrics) > METRICS or numbers > NUMBERS or longest > WORD:
        raise MessageError(
            f"at most {METRICS} metrics of {NUMBERS} numbers, with names of at most {WORD} characters, were expected; "
            f"got {len(metrics)} of {numbers} numbers, with names of up to {longest}"
        )
