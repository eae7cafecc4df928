"""The hash chain of the audit log: each hash covers its entry and the hash before it, so that a change can be detected.

After Schneier and Kelsey, "Secure Audit Logs to Support Computer Forensics", ACM TISSEC 2(2), 1999.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

START = "0" * 64
"""The previous hash of the first entry."""


@dataclass(frozen=True)
class Entry:
    """One action in the audit log: who did what, and its outcome, "done" or the sentence of the refusal.

    `sequence` counts from 1 without gaps; `at` is in Unix seconds; `who` is an admin's name, a device as "population/id",
    "local" for the owner on the server's own machine, "server", or "unknown"; `detail` is a JSON object as text.
    """

    sequence: int
    at: float
    who: str
    action: str
    subject: str
    population: str
    detail: str
    outcome: str
    previous: str
    hash: str = ""


@dataclass(frozen=True)
class Head:
    """The end of a chain: the number of entries, and the hash of the last one."""

    count: int = 0
    hash: str = START


@dataclass(frozen=True)
class Fault:
    """The first fault of a chain: the entry's number, and a sentence."""

    sequence: int
    sentence: str


def hash_of(entry: Entry) -> str:
    """The SHA-256, as hex, of the entry without its own hash, as canonical JSON (RFC 8785 except for numbers)."""
    fields = asdict(entry)
    del fields["hash"]
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def chained(entry: Entry) -> Entry:
    """The entry with its hash."""
    return replace(entry, hash=hash_of(entry))


class Walk:
    """A check of a chain against `heads` that were recorded earlier: `take` every entry in order, then call `end`."""

    def __init__(self, heads: Sequence[Head]) -> None:
        self._heads = [head for head in heads if head.count]
        self.head = Head()

    def take(self, entries: Iterable[Entry]) -> Fault | None:
        """Check the next entries, in the order of their sequence; returns the first fault, or None."""
        for entry in entries:
            if (fault := self._fault(entry)) is not None:
                return fault
            self.head = Head(entry.sequence, entry.hash)
        return None

    def end(self) -> Fault | None:
        """The fault after the last entry: entries that a recorded head counts are missing. None without a fault."""
        most = max((head.count for head in self._heads), default=0)
        if most <= self.head.count:
            return None
        gone = _entries(self.head.count + 1, most)
        return Fault(self.head.count + 1, f"{gone} missing: the server has noted that there were {most}")

    def _fault(self, entry: Entry) -> Fault | None:
        expected = self.head.count + 1
        if entry.sequence != expected:
            return Fault(expected, f"{_entries(expected, entry.sequence - 1)} missing")
        if not _is_whole(entry):
            place = self._place(entry)
            if place:
                return Fault(expected, f"entries are out of order: in the place of {expected} stands what was {place}")
            return Fault(expected, f"entry {expected} was changed: its hash is not that of its contents")
        if entry.previous != self.head.hash:
            return Fault(expected, f"entry {expected} does not follow the one before it: one of them was replaced")
        if any(head.count == expected and head.hash != entry.hash for head in self._heads):
            return Fault(expected, f"entry {expected} was changed: it is not the one that the server has noted")
        return None

    def _place(self, entry: Entry) -> int:
        """The number at which the entry's hash is right, or 0 when no number makes it right."""
        most = max([entry.sequence + 1, *(head.count for head in self._heads)])
        return next((place for place in range(1, most + 1) if _is_whole(replace(entry, sequence=place))), 0)


def _is_whole(entry: Entry) -> bool:
    try:
        return hash_of(entry) == entry.hash
    except (TypeError, ValueError):  # someone stored a value that is neither text nor number
        return False


def _entries(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"
