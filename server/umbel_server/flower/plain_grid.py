"""What Flower's Grid asks for beside nodes and messages on their way: the same on every grid of ours."""

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from umbel_server.flower import messages as flower_messages


class PlainGrid(Grid):
    """A grid that knows its run and makes plain messages; how nodes are reached is its subclasses' own."""

    def __init__(self, run_id: int) -> None:
        self._run = flower_messages.empty_run(run_id)

    def set_run(self, run: Run) -> None:
        """Set the Flower run that messages name."""
        self._run = run

    @property
    def run(self) -> Run:
        """The Flower run that messages name."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one node; see flwr.serverapp.Grid."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)
