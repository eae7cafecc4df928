"""A grid with only the nodes that the round engine selected."""

from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from umbel_server.flower.internals import FlowerRun


class SelectedNodes(Grid):
    """The inner grid with only `nodes`.

    Flower's strategies draw nodes from the global, unseeded generator and wait without end until there are enough. Of a grid
    like this one they take every node.
    """

    def __init__(self, grid: Grid, nodes: Iterable[int]) -> None:
        self._grid, self._nodes = grid, sorted(nodes)

    def get_node_ids(self) -> Iterable[int]:
        """The selected nodes."""
        return list(self._nodes)

    def set_run(self, run: FlowerRun) -> None:
        """As the inner grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> FlowerRun:
        """As the inner grid."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the inner grid."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the inner grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the inner grid."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As the inner grid."""
        return self._grid.send_and_receive(messages, timeout=timeout)
