"""Seeded selection of a round's devices, on any Flower grid."""

import random
import time
from collections.abc import Callable, Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from umbel.errors import UmbelError

POLL_SECONDS = 0.05


class TooFewDevices(UmbelError):
    """A round that did not see its minimum of devices in time."""


class Selection(Grid):
    """A grid that shows a strategy only the round's devices, and gives replies in the order of their nodes.

    Flower's strategies draw nodes from the global, unseeded generator and wait for ever. Here `begin` waits a bounded
    time and draws with the run's seed, and the strategy takes every node it sees. The same seed, round and nodes give
    the same devices; `fraction` of the nodes online are taken, at least `minimum`.
    """

    def __init__(self, grid: Grid, fraction: float, minimum: int, seed: int) -> None:
        self._grid, self._fraction, self._minimum, self._seed = grid, fraction, minimum, seed
        self._selected: list[int] = []

    def begin(self, round: int, seconds: float, should_stop: Callable[[], bool]) -> list[int]:
        """Select the devices of `round`, waiting at most `seconds` for `minimum` of them; raises TooFewDevices."""
        deadline = time.monotonic() + seconds
        while len(nodes := sorted(self._grid.get_node_ids())) < self._minimum and not should_stop():
            if time.monotonic() > deadline:
                raise TooFewDevices(
                    f"round {round} needs {self._minimum} devices online, {len(nodes)} were there for {seconds:.0f} s; "
                    "start more devices or lower the minimum"
                )
            time.sleep(POLL_SECONDS)
        count = min(len(nodes), max(self._minimum, round_half_up(self._fraction * len(nodes))))
        self._selected = sorted(random.Random(f"{self._seed}/{round}").sample(nodes, count))
        return self._selected

    def get_node_ids(self) -> Iterable[int]:
        """The round's devices."""
        return list(self._selected)

    def set_run(self, run: Run) -> None:
        """As the inner grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """As the inner grid."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the inner grid."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the inner grid, in the order of nodes."""
        return self._grid.push_messages(_in_order(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the inner grid."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """As the inner grid; replies come in the order of nodes, so that sums do not depend on arrival."""
        replies = self._grid.send_and_receive(_in_order(messages), timeout=timeout)
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)


def _in_order(messages: Iterable[Message]) -> list[Message]:
    return sorted(messages, key=lambda message: message.metadata.dst_node_id)


def round_half_up(value: float) -> int:
    """The nearest whole number, halves up."""
    return int(value + 0.5)
