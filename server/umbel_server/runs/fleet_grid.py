"""Flower's Grid over MQTT and HTTP: a facade of the port through which rounds reach a fleet."""

import secrets
from collections.abc import Iterable

from flwr.app import Message, MessageType

from umbel import tensors
from umbel.errors import UmbelError
from umbel.messages import Blob
from umbel_server.flower import messages as flower_messages
from umbel_server.flower.internals import give_id
from umbel_server.rounds.assignments import WITH_DEVICE
from umbel_server.rounds.events import Finish, Offer
from umbel_server.runs.fleet_port import FleetPort
from umbel_server.runs.run_inputs import RunGrid, RunInputs
from umbel_server.runs.settings import RunSettings

REJECTED, UNFINISHED = 1, 2
"""Codes of the error replies that a strategy sees."""


class FleetGrid(RunGrid):
    """The devices of one population as Flower nodes, for one run; nodes are the devices that are online.

    Umbel's own ServerApp takes the grid's inputs and drives rounds through their port. Another ServerApp pushes and pulls
    messages as on any grid: each message becomes an assignment, and a command that the outbox repeats until it is answered.
    """

    def __init__(self, port: FleetPort, settings: RunSettings) -> None:
        super().__init__(int(port.run.id, 16))
        self.port, self._settings = port, settings
        self._pending: dict[str, tuple[Message, str, str]] = {}

    @property
    def inputs(self) -> RunInputs:
        """The inputs of the run."""
        rate = self._settings.learning_rate or self.port.run.plan.manifest.learning_rate
        return RunInputs(self._settings, self.port, rate)

    def get_node_ids(self) -> Iterable[int]:
        """The node ids of the devices that are online, in order."""
        return sorted(self.port.node(it.device) for it in self.port.candidates() if it.online)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Offer one assignment for each message; returns the messages' ids."""
        batch = list(messages)
        return self._push(batch, [self.port.now + message.metadata.ttl for message in batch])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are here, each once; an assignment that failed is an error reply."""
        return self._pull([id for id in message_ids if id in self._pending])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Offer assignments and wait until each is settled or `timeout` seconds passed; then the rest expire."""
        batch = list(messages)
        if not batch:
            return []
        deadline = self.port.now + (timeout if timeout is not None else max(m.metadata.ttl for m in batch))
        ids = self._push(batch, [deadline] * len(batch))
        replies = self._pull(ids)
        while len(replies) < len(ids) and self.port.now < deadline and self.port.wait(deadline) is not None:
            replies += self._pull([id for id in ids if id in self._pending])
        left_early = self.port.now < deadline
        for id in ids:
            if id in self._pending:
                _, assignment, _ = self._pending.pop(id)
                why = "the server is leaving" if left_early else "not finished by the deadline"
                self.port.finish(Finish(assignment, "cancelled" if left_early else "expired", why, tell=True))
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def _push(self, batch: list[Message], closes: list[float]) -> list[str]:
        self.port.listen()
        names = {self.port.node(candidate.device): candidate.device for candidate in self.port.candidates()}
        blobs: dict[int, Blob] = {}
        offers = []
        for message, until in zip(batch, closes, strict=True):
            node = message.metadata.dst_node_id
            if node not in names:
                raise UmbelError(f"node {node} is not a device of population {self.port.run.population}")
            record = next(iter(message.content.array_records.values()))
            if id(record) not in blobs:
                blobs[id(record)] = self.port.store(flower_messages.tensors_of(record))
            offer = Offer(secrets.token_hex(8), names[node], 0, until)
            offers.append((offer, message, blobs[id(record)]))
        self.port.assign(offers)
        ids = [give_id(message) for message in batch]
        for id_, (offer, message, _) in zip(ids, offers, strict=True):
            self._pending[id_] = message, offer.id, offer.device
        return ids

    def _pull(self, ids: list[str]) -> list[Message]:
        states = self.port.states([self._pending[id][1] for id in ids])
        replies = []
        for id in ids:
            message, assignment, device = self._pending[id]
            state, reason = states[assignment]
            if state not in WITH_DEVICE:
                del self._pending[id]
                replies.append(self._reply(message, assignment, device, state, reason))
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def _reply(self, message: Message, assignment: str, device: str, state: str, reason: str) -> Message:
        if state not in ("uploaded", "folded"):
            return flower_messages.error_reply(message, UNFINISHED, f"{device}: {state}: {reason}")
        try:
            arrival = self.port.arrival(assignment)
            if arrival.examples < 1:
                raise UmbelError(f"an update of at least one example was expected, got {arrival.examples}")
            weights = {}
            if message.metadata.message_type == MessageType.TRAIN:
                tensors.check(arrival.update.delta, self.port.run.plan.manifest.weights, f"the update of {device}")
                base = flower_messages.tensors_of(next(iter(message.content.array_records.values())))
                weights = {name: weight + arrival.update.delta[name] for name, weight in base.items()}
        except UmbelError as error:
            self.port.finish(Finish(assignment, "rejected", str(error), tell=False))
            return flower_messages.error_reply(message, REJECTED, f"{device}: {error}")
        self.port.finish(Finish(assignment, "folded", "", tell=False))
        return flower_messages.reply(message, weights, {"num-examples": float(arrival.examples), **arrival.metrics})
