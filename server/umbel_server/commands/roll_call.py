"""The roll call: which devices the server asks whether they are there, when, and which of them are gone.

Brokers send too many last wills, too few, or late ones, and lose retained messages, so none of these is proof. A device is
there when it said something new or answered a question; it is gone when it did not answer in time. This file decides and
does nothing else: times are arguments, in seconds of a monotonic clock.
"""

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass

Name = tuple[str, str]
"""A population and a device of it."""

SILENCE_SECONDS = 90.0
"""A device that counts as online and is silent for so long is asked whether it is there."""
ANSWER_SECONDS = 10.0
"""An answer may take this long."""
TRIES = 2
"""Questions without an answer after which a device counts as offline."""
ASKED_PER_SECOND = 200.0
"""Questions are spread, so that neither the broker nor the server is flooded with answers."""
CROWD = 50
"""With more questions due than this, devices spread their answers over SPREAD_SECONDS."""
SPREAD_SECONDS = 2.0
FIRST_REST, LAST_REST = 20.0, 3600.0
"""A device that counts as offline is asked again after a rest, which doubles between these bounds."""


@dataclass(frozen=True)
class Question:
    """A device to ask, and the seconds over which it may spread its answer."""

    name: Name
    within: float


@dataclass
class _Entry:
    online: bool = False
    due: float = 0.0
    question: str = ""
    """The id of the newest question; empty when none was asked since the device was last heard."""
    tries: int = 0
    rest: float = FIRST_REST
    queued: float = math.inf
    """When it comes up in the queue; other places of it there are void."""


class RollCall:
    """The devices that may be there. Not safe to use from several threads."""

    def __init__(self, silence: float = SILENCE_SECONDS) -> None:
        self._silence = silence
        self._entries: dict[Name, _Entry] = {}
        self._queue: list[tuple[float, Name]] = []
        self._paced, self._budget = 0.0, ASKED_PER_SECOND

    def heard(self, name: Name, now: float) -> None:
        """Note that a device is certainly there."""
        entry = self._entries.setdefault(name, _Entry())
        entry.online, entry.question, entry.tries, entry.rest = True, "", 0, FIRST_REST
        entry.due = now + self._silence
        self._put(name, entry)

    def left(self, name: Name, now: float) -> None:
        """Note that a device itself said that it goes offline."""
        entry = self._entries.setdefault(name, _Entry())
        entry.online, entry.question, entry.tries = False, "", 0
        self._rest(name, entry, now)

    def doubt(self, name: Name, now: float, online: bool) -> None:
        """Ask a device soon, unless a question to it is open; `online` is how it counts until then."""
        entry = self._entries.setdefault(name, _Entry())
        entry.online = online
        if not entry.question:
            entry.due = now
            self._put(name, entry)

    def ask_all(self, names: Iterable[Name], now: float) -> None:
        """Ask every device anew, in this order: none counts as online until it answers."""
        self._queue.clear()
        self._entries = {name: _Entry(due=now + number * 1e-9) for number, name in enumerate(names)}
        for name, entry in self._entries.items():
            self._put(name, entry)

    def add(self, names: Iterable[Name], now: float) -> None:
        """Ask those of these devices that are new here."""
        for name in names:
            if name not in self._entries:
                self._entries[name] = entry = _Entry(due=now)
                self._put(name, entry)

    def forget(self, name: Name) -> None:
        """Ask a device no more."""
        self._entries.pop(name, None)

    def is_online(self, name: Name) -> bool:
        """Whether a device counts as online."""
        return (entry := self._entries.get(name)) is not None and entry.online

    def is_answer(self, name: Name, question: str) -> bool:
        """Whether `question` is the id of the newest question to a device, which it has not answered yet."""
        entry = self._entries.get(name)
        return bool(question) and entry is not None and entry.question == question

    def asked(self, name: Name, question: str) -> None:
        """Note the id of the question that was just put to a device."""
        if (entry := self._entries.get(name)) is not None:
            entry.question = question

    def turn(self, now: float) -> tuple[list[Question], list[Name]]:
        """The devices to ask now, at most ASKED_PER_SECOND, and those that count as offline from now on."""
        self._budget = min(ASKED_PER_SECOND, self._budget + (now - self._paced) * ASKED_PER_SECOND)
        self._paced = now
        due, gone = list[Name](), list[Name]()
        while self._queue and self._queue[0][0] <= now and self._budget >= 1:
            place, name = heapq.heappop(self._queue)
            entry = self._entries.get(name)
            if entry is None or entry.queued != place:
                continue
            entry.queued = math.inf
            if entry.due > now:
                self._put(name, entry)
            elif entry.tries >= TRIES:
                if entry.online:
                    gone.append(name)
                entry.online, entry.question, entry.tries = False, "", 0
                self._rest(name, entry, now)
            else:
                self._budget -= 1
                due.append(name)
        within = SPREAD_SECONDS if len(due) > CROWD else 0.0
        for name in due:
            entry = self._entries[name]
            entry.tries += 1
            entry.due = now + within + ANSWER_SECONDS
            self._put(name, entry)
        return [Question(name, within) for name in due], gone

    def _rest(self, name: Name, entry: _Entry, now: float) -> None:
        entry.due = now + entry.rest
        entry.rest = min(entry.rest * 2, LAST_REST)
        self._put(name, entry)

    def _put(self, name: Name, entry: _Entry) -> None:
        """Queue an entry, unless it comes up before it is due anyway."""
        if entry.due < entry.queued:
            entry.queued = entry.due
            heapq.heappush(self._queue, (entry.due, name))
