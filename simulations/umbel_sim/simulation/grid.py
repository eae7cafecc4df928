"""Flower's Grid over virtual devices: a facade of the port through which rounds reach them."""

from collections.abc import Iterable

from flwr.app import Message, MessageType

from umbel.errors import UmbelError
from umbel_server.flower import messages as flower_messages
from umbel_server.flower.internals import give_id
from umbel_server.rounds.events import Ended, Finish, Offer, Uploaded
from umbel_server.runs.run_inputs import RunGrid, RunInputs
from umbel_server.runs.settings import RunSettings
from umbel_sim.simulation.simulated_port import SimulationPort, Untrained

UNFINISHED = 2
"""The code of the error replies that a strategy sees."""


class SimulationGrid(RunGrid):
    """Virtual devices as Flower nodes.

    Umbel's own ServerApp takes the grid's inputs and drives rounds through their port. Another ServerApp pushes and pulls
    messages as on any grid.

    Time is virtual: it passes in `pull_messages` and `send_and_receive`, which return when something has happened.
    """

    def __init__(self, port: SimulationPort, settings: RunSettings) -> None:
        super().__init__(1)
        self.port, self._settings = port, settings
        self._pending: dict[str, tuple[Message, str, float]] = {}
        self._messages: dict[str, str] = {}
        self._pushed = 0
        self._ready: dict[str, Message] = {}

    @property
    def inputs(self) -> RunInputs:
        """The inputs of the run."""
        rate = self._settings.learning_rate or self.port.plan.manifest.learning_rate
        return RunInputs(self._settings, self.port, rate)

    def get_node_ids(self) -> Iterable[int]:
        """The node ids of the devices that are connected, in order."""
        return sorted(self.port.node(candidate.device) for candidate in self.port.candidates() if candidate.online)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Offer one assignment for each message; returns the messages' ids."""
        batch = list(messages)
        return self._push(batch, [self.port.now + message.metadata.ttl for message in batch])

    def _push(self, batch: list[Message], closes: list[float]) -> list[str]:
        kinds = MessageType.TRAIN, MessageType.EVALUATE
        if other := [message for message in batch if message.metadata.message_type not in kinds]:
            raise UmbelError(
                f"a simulation's nodes train and evaluate; a {other[0].metadata.message_type} message was sent"
            )
        ids = [give_id(message) for message in batch]
        for id, message, until in zip(ids, batch, closes, strict=True):
            (record,) = message.content.array_records.values()
            # Message ids are drawn anew in every process; what becomes of an assignment is drawn by its own.
            assignment = f"pushed-{self._pushed}"
            self._pushed += 1
            device, weights = self.port.name(message.metadata.dst_node_id), flower_messages.tensors_of(record)
            if message.metadata.message_type == MessageType.EVALUATE:
                self.port.examine(assignment, device, weights)
            else:
                self.port.assign(Offer(assignment, device, 0, until), message, weights)
            self._messages[assignment] = id
            self._pending[id] = message, assignment, until
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages, each once. When there is none yet, virtual time passes until the next event."""
        wanted = [id for id in message_ids if id in self._pending or id in self._ready]
        if not any(id in self._ready for id in wanted) and wanted:
            self._pass(min(self._pending[id][2] for id in wanted))
        return [self._ready.pop(id) for id in wanted if id in self._ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Offer assignments and wait until each is settled or `timeout` virtual seconds passed; then the rest expire."""
        batch = list(messages)
        closes = [self.port.now + (message.metadata.ttl if timeout is None else timeout) for message in batch]
        ids = self._push(batch, closes)
        while any(id in self._pending for id in ids):
            self._pass(max(closes))
        replies = [self._ready.pop(id) for id in ids if id in self._ready]
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def _pass(self, until: float) -> None:
        """Let virtual time pass to the next event, or to `until`. Messages whose time is over expire."""
        happened = self.port.wait(until)
        if happened is None:
            raise UmbelError("the simulation was left")
        for event in happened:
            match event:
                case Uploaded(id=assignment) if assignment in self._messages:
                    self._settle(assignment)
                case Ended(id=assignment, reason=reason) if assignment in self._messages:
                    message, _, _ = self._pending[self._messages[assignment]]
                    self._answer(assignment, flower_messages.error_reply(message, UNFINISHED, reason))
        for message, assignment, closes in list(self._pending.values()):
            if closes <= self.port.now:
                self.port.finish(Finish(assignment, "expired", "not finished by the deadline", tell=True))
                device = self.port.name(message.metadata.dst_node_id)
                self._answer(assignment, flower_messages.error_reply(message, UNFINISHED, f"{device}: expired"))

    def _settle(self, assignment: str) -> None:
        message, _, _ = self._pending[self._messages[assignment]]
        try:
            if message.metadata.message_type == MessageType.EVALUATE:
                count, sums = self.port.examined(assignment)
                self._answer(assignment, flower_messages.reply(message, {}, {"num-examples": float(count), **sums}))
                return
            arrival = self.port.arrival(assignment)
        except Untrained as error:
            raise UmbelError(str(error)) from error
        base = flower_messages.tensors_of(next(iter(message.content.array_records.values())))
        weights = {name: weight + arrival.update.delta[name] for name, weight in base.items()}
        metrics = {"num-examples": float(arrival.examples), **arrival.metrics}
        self.port.finish(Finish(assignment, "folded", "", tell=False))
        self._answer(assignment, flower_messages.reply(message, weights, metrics))

    def _answer(self, assignment: str, reply: Message) -> None:
        id = self._messages.pop(assignment)
        del self._pending[id]
        self._ready[id] = reply
