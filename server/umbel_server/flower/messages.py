"""Flower's messages and records, made from tensors and metrics and read back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict, UserConfig
from numpy.typing import NDArray

from umbel.metrics import Sums
from umbel.tensors import Tensors
from umbel_server.flower.internals import SERVER_NODE, give_id


def array_record(weights: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Tensors as a record of Flower."""
    return ArrayRecord({name: Array(np.asarray(weight)) for name, weight in weights.items()})


def tensors_of(record: ArrayRecord) -> Tensors:
    """The tensors of a record; raises TypeError when its arrays are not in NumPy's serialisation."""
    return {name: array.numpy() for name, array in record.items()}


def reply(to: Message, weights: Mapping[str, NDArray[Any]], metrics: Mapping[str, float | list[float]]) -> Message:
    """A device's answer: weights (none after an evaluation), and metrics with "num-examples" among them."""
    content = RecordDict({"metrics": MetricRecord(dict(metrics))})
    if weights:
        content["arrays"] = array_record(weights)
    return Message(content, reply_to=to)


def own_reply(weights: Mapping[str, NDArray[Any]], metrics: Mapping[str, float | list[float]]) -> Message:
    """A reply that no device sent: it gives a strategy what the server has aggregated already."""
    to = Message(RecordDict(), SERVER_NODE, MessageType.TRAIN)
    give_id(to)
    return reply(to, weights, metrics)


def sums_of(record: MetricRecord | None) -> Sums:
    """The metrics of a record as floats and lists of floats; without a record there are none."""
    return {
        name: [float(v) for v in value] if isinstance(value, list) else float(value)
        for name, value in (record or {}).items()
    }


def error_reply(to: Message, code: int, reason: str) -> Message:
    """The answer in place of a device's when it has not done the work."""
    return Message(Error(code, reason), reply_to=to)


def context(run_id: int, run_config: UserConfig) -> Context:
    """The context that a ServerApp is called with."""
    return Context(run_id, SERVER_NODE, {}, RecordDict(), run_config)
