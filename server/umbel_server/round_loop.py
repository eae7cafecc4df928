"""The round loop: a Flower strategy plugged in at configuring and aggregating, a journal that remembers."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg

from umbel.errors import UmbelError
from umbel.metrics import Sums
from umbel.tensors import Tensors, WeightSpec, check
from umbel_server import flower_messages, strategies
from umbel_server.selection import Selection

log = logging.getLogger("umbel.rounds")

ABANDONED_IN_A_ROW = 3


@dataclass(frozen=True)
class Start:
    """Where a run begins or goes on: the last committed round (0: none), its weights, the strategy's state."""

    round: int
    weights: Tensors
    strategy: Tensors


@dataclass(frozen=True)
class Commit:
    """A round to remember. `fleet_sums` are the devices' `per_example` sums, averaged by examples; `started` is Unix seconds."""

    round: int
    weights: Tensors
    strategy: Tensors
    fleet_sums: Sums
    contributors: int
    started: float


class Journal(Protocol):
    """What outlives the process: a database for a fleet, a folder for stock Flower."""

    def start(self) -> Start:
        """Where to go on."""

    def should_stop(self) -> bool:
        """Whether the run was stopped from outside."""

    def abandoned(self, round: int, reason: str) -> None:
        """Note that a round ended without a checkpoint; it is tried again."""

    def committed(self, commit: Commit) -> dict[str, float]:
        """Remember a round, durably; returns the held-out metrics, empty when nothing is held out."""


@dataclass(frozen=True)
class LoopConfig:
    """How to train; `deadline` is seconds. Ends early once held-out metric `until` is at least `at_least`."""

    rounds: int
    learning_rate: float
    epochs: int
    max_steps: int
    seed: int
    deadline: float
    until: str = ""
    at_least: float = 0.0


def run_rounds(
    strategy: FedAvg,
    selection: Selection,
    journal: Journal,
    config: LoopConfig,
    clock: Callable[[], float] = time.time,
) -> None:
    """Train round by round until the last one, the goal, or a stop.

    A round in which no device gave a valid update is abandoned and tried again, ABANDONED_IN_A_ROW times at most; then
    UmbelError is raised, as it is when too few devices are online or the strategy cannot aggregate.
    """
    start = journal.start()
    weights, order = start.weights, list(start.weights)
    strategies.restore(strategy, start.strategy, order)
    number, abandoned = start.round + 1, 0
    while number <= config.rounds:
        began = clock()
        selection.begin(number, config.deadline, journal.should_stop)
        if journal.should_stop():
            return
        settings = ConfigRecord(
            {
                "learning-rate": config.learning_rate,
                "epochs": config.epochs,
                "max-steps": config.max_steps,
                "seed": config.seed + number,
            }
        )
        messages = strategy.configure_train(number, flower_messages.array_record(weights), settings, selection)
        replies = selection.send_and_receive(messages, timeout=config.deadline)
        if journal.should_stop():
            return
        faults = {reply.metadata.src_node_id: _fault(reply, weights) for reply in replies}
        refused = [fault for fault in faults.values() if fault]
        for fault in refused:
            log.warning("round %d goes on without a device: %s", number, fault)
        valid = [reply for reply in replies if not faults[reply.metadata.src_node_id]]
        for reply in valid:
            _put_in_order(reply, order)
        try:
            arrays, metrics = strategy.aggregate_train(number, valid)
        except Exception as error:
            raise UmbelError(f"round {number}: {type(strategy).__name__} cannot aggregate: {error}") from error
        if arrays is None:
            abandoned += 1
            why = refused[0] if refused else "no device answered in time"
            if valid:
                why = f"{len(valid)} updates are too few for {type(strategy).__name__} with its options"
            log.warning("round %d abandoned: %s", number, why)
            journal.abandoned(number, why)
            if abandoned == ABANDONED_IN_A_ROW:
                raise UmbelError(f"round {number} was abandoned {abandoned} times in a row, last because {why}")
            continue
        abandoned = 0
        aggregated = flower_messages.tensors_of(arrays)
        weights = {name: aggregated[name].astype(weights[name].dtype, copy=False) for name in order}
        if not all(np.isfinite(weight).all() for weight in weights.values()):
            raise UmbelError(
                f"round {number}: {type(strategy).__name__} made weights that are not finite; "
                "lower the learning rate or the strategy's own"
            )
        fleet: Sums = {
            name: [float(v) for v in value] if isinstance(value, list) else float(value)
            for name, value in (metrics or {}).items()
        }
        held_out = journal.committed(Commit(number, weights, strategies.state_of(strategy), fleet, len(valid), began))
        if config.until and held_out.get(config.until, float("-inf")) >= config.at_least:
            log.info("round %d: %s is %.4f, the goal is reached", number, config.until, held_out[config.until])
            return
        number += 1


def _put_in_order(reply: Message, order: list[str]) -> None:
    """Lay the update's arrays out as they were sent: several of Flower's strategies pair arrays by position."""
    (record,) = reply.content.array_records.values()
    if list(record) != order:
        for name in order:
            record[name] = record.pop(name)


def _fault(reply: Message, sent: Tensors) -> str:
    """Why a reply cannot be aggregated: an error, or an update that does not fit the weights `sent`; empty when it can."""
    if reply.has_error():
        return reply.error.reason or f"error {reply.error.code}"
    who = f"the update of node {reply.metadata.src_node_id}"
    records = list(reply.content.array_records.values())
    metrics = list(reply.content.metric_records.values())
    if len(records) != 1 or len(metrics) != 1:
        return f"{who} should hold one record of arrays and one of metrics, got {len(records)} and {len(metrics)}"
    examples = metrics[0].get("num-examples")
    if not isinstance(examples, int | float) or not 0 < examples < math.inf:
        return f"{who} should have a positive number of examples, got {examples!r}"
    specs = [WeightSpec(name, weight.shape, weight.dtype.name) for name, weight in sent.items()]
    try:
        check(flower_messages.tensors_of(records[0]), specs, who)
    except (UmbelError, TypeError, ValueError) as error:
        return str(error)
    return ""
