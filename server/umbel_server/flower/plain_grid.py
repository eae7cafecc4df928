"""The parts of Flower's Grid that are the same on every grid of ours: its run, and how messages are made."""

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from umbel_server.flower.internals import FlowerRun, empty_run, set_identity


class PlainGrid(Grid):
    """A grid that knows its run and makes plain messages; subclasses reach the nodes."""

    def __init__(self, run_id: int) -> None:
        set_identity()
        self._run = empty_run(run_id)

    def set_run(self, run: FlowerRun) -> None:
        """Set the Flower run that messages name."""
        self._run = run

    @property
    def run(self) -> FlowerRun:
        """The Flower run that messages name."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one node; see flwr.serverapp.Grid."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)
