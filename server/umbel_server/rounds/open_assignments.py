"""The assignments of a run that have no final state yet, as an immutable collection that knows its sums."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, ValuesView
from dataclasses import dataclass
from typing import Literal

from umbel_server.rounds.assignments import WITH_DEVICE


@dataclass(frozen=True)
class OpenAssignment:
    """An assignment that has no final state yet.

    It trains from checkpoint `base` until `closes`. `offered` and `accepted` ones are with their device; `arrived` ones
    are uploaded; `folding` ones are being vetted; `folded` ones are in the sum with their `weight`.
    """

    id: str
    device: str
    base: int
    closes: float
    state: Literal["offered", "accepted", "arrived", "folding", "folded"] = "offered"
    examples: int = 0
    weight: float = 0.0


class OpenAssignments(Mapping[str, OpenAssignment]):
    """Assignments by id. A round of thousands asks for their numbers at every event, so they are counted as they change."""

    __slots__ = ("_arrived", "_by_id", "_counts", "_soonest")

    def __init__(self, works: Iterable[OpenAssignment] = ()) -> None:
        self._by_id = {work.id: work for work in works}
        self._arrived = {work.id: work for work in self._by_id.values() if work.state == "arrived"}
        self._counts: Counter[tuple[str, int]] = Counter((work.state, work.base) for work in self._by_id.values())
        self._soonest = min((w.closes for w in self._by_id.values() if w.state in WITH_DEVICE), default=math.inf)

    def __getitem__(self, id: str) -> OpenAssignment:
        return self._by_id[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def values(self) -> ValuesView[OpenAssignment]:
        """The assignments; the dictionary's own view, because it is faster than Mapping's."""
        return self._by_id.values()

    @property
    def arrived(self) -> tuple[OpenAssignment, ...]:
        """The assignments in the state `arrived`, in the order of arrival."""
        return tuple(self._arrived.values())

    def put(self, *works: OpenAssignment) -> "OpenAssignments":
        """A copy with `works` added; they replace assignments with the same ids."""
        made = self._copy()
        for work in works:
            if (before := made._by_id.get(work.id)) is not None:
                made._counts[before.state, before.base] -= 1
            made._by_id[work.id] = work
            made._arrived.pop(work.id, None)
            if work.state == "arrived":
                made._arrived[work.id] = work
            made._counts[work.state, work.base] += 1
            if work.state in WITH_DEVICE:
                made._soonest = min(made._soonest, work.closes)
        return made

    def without(self, *ids: str) -> "OpenAssignments":
        """A copy without the assignments of `ids`."""
        made = self._copy()
        for id in ids:
            gone = made._by_id.pop(id)
            made._arrived.pop(id, None)
            made._counts[gone.state, gone.base] -= 1
        return made

    def count(self, *states: str) -> int:
        """How many are in one of `states`."""
        return sum(count for (state, _), count in self._counts.items() if state in states)

    def coming(self, base: int) -> int:
        """How many devices are at work on checkpoint `base`."""
        return sum(self._counts[state, base] for state in WITH_DEVICE)

    @property
    def soonest(self) -> float:
        """No device's work closes before this."""
        return self._soonest

    def overdue(self, now: float) -> list[OpenAssignment]:
        """Those with devices that close at `now` or before."""
        if now < self._soonest:
            return []
        return [work for work in self._by_id.values() if work.state in WITH_DEVICE and work.closes <= now]

    def _copy(self) -> "OpenAssignments":
        made = OpenAssignments.__new__(OpenAssignments)
        made._by_id, made._arrived = self._by_id.copy(), self._arrived.copy()
        made._counts, made._soonest = self._counts.copy(), self._soonest
        return made
