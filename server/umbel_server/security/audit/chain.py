"""The audit log's hash chain: each entry's hash covers the entry and the hash before it, so that no change goes unseen.

After Schneier and Kelsey, "Secure Audit Logs to Support Computer Forensics", ACM TISSEC 2(2), 1999.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

START = "0" * 64
"""What the first entry has for the hash before it."""


@dataclass(frozen=True)
class Entry:
    """Who did what, and how it ended: `outcome` is "done", or the sentence of the refusal.

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
    """Where a chain ends: how many entries it has, and the hash of the last."""

    count: int = 0
    hash: str = START


@dataclass(frozen=True)
class Fault:
    """The first thing that is wrong with a chain: at which entry, and a sentence."""

    sequence: int
    sentence: str


def hash_of(entry: Entry) -> str:
    """The SHA-256, as hex, of the entry as canonical JSON (RFC 8785 but for numbers) without its own hash."""
    fields = asdict(entry)
    del fields["hash"]
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def chained(entry: Entry) -> Entry:
    """The entry with its hash."""
    return replace(entry, hash=hash_of(entry))


class Walk:
    """A walk along a chain that is held against the `heads` that it had before; feed it every entry, then `end` it."""

    def __init__(self, heads: Sequence[Head]) -> None:
        self._heads = [head for head in heads if head.count]
        self.head = Head()

    def take(self, entries: Iterable[Entry]) -> Fault | None:
        """Go on over the next entries, in the order of their sequence; returns what is wrong with the first that is."""
        for entry in entries:
            if (fault := self._fault(entry)) is not None:
                return fault
            self.head = Head(entry.sequence, entry.hash)
        return None

    def end(self) -> Fault | None:
        """What is wrong after the last entry: those that a head says were there are missing."""
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
        """Where an entry whose hash does not fit its place belongs, or 0 when it was changed otherwise."""
        most = max([entry.sequence + 1, *(head.count for head in self._heads)])
        return next((place for place in range(1, most + 1) if _is_whole(replace(entry, sequence=place))), 0)


def _is_whole(entry: Entry) -> bool:
    try:
        return hash_of(entry) == entry.hash
    except (TypeError, ValueError):  # a database was made to hold what is no text or number
        return False


def _entries(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"
