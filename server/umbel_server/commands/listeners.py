"""Listeners of the transitions of commands, and of the presence of devices. They are in-process: another process hears nothing."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from umbel.messages import Outcome
from umbel_server.commands.assignment_transitions import Moved

log = logging.getLogger("umbel.exchange")


@dataclass(frozen=True)
class Transition:
    """A command as it is after a transition, with the outcome that came and the assignment that moved, where there is one."""

    command: str
    population: str
    device: str
    kind: str
    state: str
    reason: str
    at: float
    outcome: Outcome | None = None
    assignment: Moved | None = None


Listener = Callable[[Transition], None]
PresenceListener = Callable[[], None]
End = Callable[[], None]
"""Ends a subscription; a second call changes nothing."""

ALL = ("all", "")


class Listeners:
    """Tells listeners of transitions, once they are committed, in the thread that made them: a listener must not block.

    A listener that raises is logged; the others are told all the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[tuple[str, str], tuple[Listener, ...]] = {}
        self._presence: dict[str, tuple[PresenceListener, ...]] = {}

    def to_all(self, listener: Listener) -> End:
        """Listen to every transition."""
        return self._add(ALL, listener)

    def to_kind(self, kind: str, listener: Listener) -> End:
        """Listen to the transitions of a kind of commands, by its name (umbel_server.commands.kinds)."""
        return self._add(("kind", kind), listener)

    def to_population(self, population: str, listener: Listener) -> End:
        """Listen to the transitions of a population's commands."""
        return self._add(("population", population), listener)

    def to_run(self, run: str, listener: Listener) -> End:
        """Listen to the transitions that move an assignment of a run."""
        return self._add(("run", run), listener)

    def to_command(self, command: str, listener: Listener) -> End:
        """Listen to the transitions of one command."""
        return self._add(("command", command), listener)

    def to_presence(self, population: str, listener: PresenceListener) -> End:
        """Listen to changes of a population's devices: online, offline, eligible, barred, labelled."""
        with self._lock:
            self._presence[population] = (*self._presence.get(population, ()), listener)

        def end() -> None:
            with self._lock:
                left = tuple(one for one in self._presence.pop(population, ()) if one is not listener)
                if left:
                    self._presence[population] = left

        return end

    def _add(self, key: tuple[str, str], listener: Listener) -> End:
        with self._lock:
            self._listeners[key] = (*self._listeners.get(key, ()), listener)

        def end() -> None:
            with self._lock:
                left = tuple(one for one in self._listeners.pop(key, ()) if one is not listener)
                if left:
                    self._listeners[key] = left

        return end

    def tell(self, transition: Transition) -> None:
        """Tell of a transition that is committed."""
        keys = [
            ALL,
            ("kind", transition.kind),
            ("population", transition.population),
            ("command", transition.command),
        ]
        if transition.assignment is not None:
            keys.append(("run", transition.assignment.run))
        for key in keys:
            for listener in self._listeners.get(key, ()):
                try:
                    listener(transition)
                except Exception:
                    log.exception("a listener failed at %s of command %s", transition.state, transition.command)

    def tell_presence(self, population: str | None) -> None:
        """Tell that devices of a population changed, or of every population (None)."""
        populations = list(self._presence) if population is None else [population]
        for name in populations:
            for listener in self._presence.get(name, ()):
                try:
                    listener()
                except Exception:
                    log.exception("a listener failed at news of population %s", name)
