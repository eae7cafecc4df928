"""The one place that reaches below Flower's public API: a Grid of our own must give messages their ids."""

import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict, UserConfig
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from umbel.metrics import Sums
from umbel.tensors import Tensors

SERVER_NODE = 1


def set_identity() -> None:
    """Tell flwr which task this process is, unless it runs in one of Flower's; without it no Message can be made."""
    if TaskIdentity._run_id is None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 0, SERVER_NODE


def give_id(message: Message) -> str:
    """Give an instruction message a fresh id, which its reply will name; returns it."""
    id = secrets.token_hex(16)
    message.metadata.__dict__["_message_id"] = id
    return id


def array_record(weights: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Tensors as Flower's record."""
    return ArrayRecord({name: Array(np.asarray(weight)) for name, weight in weights.items()})


def tensors_of(record: ArrayRecord) -> Tensors:
    """The tensors of Flower's record; arrays of another serialisation than NumPy's raise TypeError."""
    return {name: array.numpy() for name, array in record.items()}


def reply(to: Message, weights: Mapping[str, NDArray[Any]], metrics: Mapping[str, float | list[float]]) -> Message:
    """The answer of a device: weights (none after an evaluation) and metrics, among them "num-examples"."""
    content = RecordDict({"metrics": MetricRecord(dict(metrics))})
    if weights:
        content["arrays"] = array_record(weights)
    return Message(content, reply_to=to)


def own_reply(weights: Mapping[str, NDArray[Any]], metrics: Mapping[str, float | list[float]]) -> Message:
    """A reply that no device sent, to a message that was never sent: what is aggregated already, for a strategy."""
    to = Message(RecordDict(), SERVER_NODE, MessageType.TRAIN)
    give_id(to)
    return reply(to, weights, metrics)


def sums_of(record: MetricRecord | None) -> Sums:
    """The metrics of Flower's record as floats and lists of floats; none of no record."""
    return {
        name: [float(v) for v in value] if isinstance(value, list) else float(value)
        for name, value in (record or {}).items()
    }


def error_reply(to: Message, code: int, reason: str) -> Message:
    """The answer that stands for a device that did not do it."""
    return Message(Error(code, reason), reply_to=to)


def empty_run(run_id: int) -> Run:
    """A Flower run that has only an id."""
    return Run.create_empty(run_id)


def context(run_id: int, run_config: UserConfig) -> Context:
    """What a ServerApp is called with."""
    return Context(run_id, SERVER_NODE, {}, RecordDict(), run_config)
