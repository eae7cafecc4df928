"""A Flower grid in memory whose nodes answer at once, each by a function of the message."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from flwr.app import ConfigRecord, Message

from umbel.tensors import Tensors
from umbel_server.flower import internals
from umbel_server.flower import messages as flower_messages
from umbel_server.flower.plain_grid import PlainGrid

Node = Callable[[Message], Message | None]
"""A device: it answers a message, or does not."""

internals.set_identity()


class MemoryGrid(PlainGrid):
    """The nodes by id, all online; replies come in the reverse order of nodes, as from a fleet that owes no order."""

    def __init__(self, nodes: Mapping[int, Node]) -> None:
        super().__init__(1)
        self.nodes = dict(nodes)
        self.asked: list[list[int]] = []
        self.configs: list[dict[str, object]] = []
        self._waiting: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        self.asked.append([message.metadata.dst_node_id for message in batch])
        self.configs += [dict(next(iter(m.content.config_records.values()), ConfigRecord())) for m in batch[:1]]
        ids = [internals.give_id(message) for message in batch]
        self._waiting |= dict(zip(ids, batch, strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        messages = [self._waiting.pop(id) for id in message_ids if id in self._waiting]
        replies = [self.nodes[message.metadata.dst_node_id](message) for message in messages]
        return [reply for reply in reversed(replies) if reply is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))


def learner(node: int) -> Node:
    """A node that adds noise of its own to the weights, other noise each round, less of it the larger `proximal-mu`."""

    def answer(message: Message) -> Message:
        (arrays,), (config,) = message.content.array_records.values(), message.content.config_records.values()
        number, mu = config["server-round"], config.get("proximal-mu", 0.0)
        assert isinstance(number, int)
        assert isinstance(mu, float)
        return flower_messages.reply(
            message,
            update(flower_messages.tensors_of(arrays), node, number, mu),
            {"num-examples": float(10 + 7 * node), "loss": 1.0 / node, "accuracy": 0.1 * node},
        )

    return answer


def update(weights: Tensors, node: int, number: int, mu: float = 0.0) -> Tensors:
    """The weights that `learner(node)` answers with in round `number`."""
    updated = {}
    for name, weight in weights.items():
        noise = np.random.default_rng([node, number, *name.encode()]).normal(size=weight.shape)
        updated[name] = (weight + noise / (1 + mu)).astype(weight.dtype)
    return updated


def weights() -> Tensors:
    """Weights whose names are not in alphabetical order and whose shapes differ, one of them a scalar."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"z/kernel": (3, 4), "a/bias": (4,), "m/scale": ()}
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}


class VirtualTime:
    """A clock that a sleep moves on."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
