"""The events of one run, put in by other threads and taken out by the thread that drives it."""

import queue
from contextlib import suppress

from umbel_server.commands.listeners import End, Transition
from umbel_server.rounds.events import Accepted, Ended, Event, Uploaded
from umbel_server.runs.fleet_run import FleetRun


class EventQueue:
    """Events of devices, which the exchange reports from its own thread, and an administrator's orders.

    `wait` is for the thread that drives the run; everything else is for any thread.
    """

    def __init__(self, run: FleetRun) -> None:
        self._run = run
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._left = False
        self._ends: list[End] = []

    def put(self, event: Event) -> None:
        """Put an event in."""
        self._queue.put(event)

    def leave(self) -> None:
        """Make `wait` return None from now on."""
        self._left = True
        self._queue.put(None)

    def _hear(self, transition: Transition) -> None:
        """Put in that a device moved an assignment on."""
        now, moved = self._run.now, transition.assignment
        assert moved is not None, "listeners of a run are told of its assignments alone"
        if moved.state == "accepted":
            self._queue.put(Accepted(now, moved.id))
        elif moved.state == "uploaded":
            self._queue.put(Uploaded(now, moved.id, moved.examples))
        else:
            self._queue.put(Ended(now, moved.id, f"{moved.device} {moved.state}: {moved.reason}"))

    def listen(self) -> None:
        """Begin to take events from the exchange; a second call changes nothing."""
        if not self._ends:
            listeners = self._run.fleet.exchange.listeners
            self._ends.append(listeners.to_run(self._run.id, self._hear))
            self._ends.append(listeners.to_presence(self._run.population, self._wake))

    def close(self) -> None:
        """Take no more events from the exchange."""
        for end in self._ends:
            end()

    def _wake(self) -> None:
        """Make `wait` look again: the presence of devices changed."""
        self._queue.put(None)

    def wait(self, until: float) -> list[Event] | None:
        """The events so far, or those that come until `until`; None after `leave`."""
        events: list[Event] = []
        patience = max(0.0, min(until - self._run.now, 3600.0))
        try:
            event = self._queue.get(timeout=patience) if patience else self._queue.get_nowait()
            while True:
                if event is not None:
                    events.append(event)
                event = self._queue.get_nowait()
        except queue.Empty:
            if self._run.now < until or self._left:
                return None if self._left else events
        # A deadline may act now. Messages that came before it, while the database was locked, count as in time.
        self._run.fleet.exchange.intake.catch_up()
        with suppress(queue.Empty):
            while True:
                if (event := self._queue.get_nowait()) is not None:
                    events.append(event)
        return None if self._left else events
