"""What drives the round engine: a port to a fleet, a Flower strategy at its two points, configuring and aggregating."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp.strategy import FedAvg
from msgspec.structs import replace as replace_spec

from umbel.errors import UmbelError
from umbel.tensors import Tensors, WeightSpec
from umbel_server import moments
from umbel_server.aggregation import Vetting
from umbel_server.flower import messages as flower_messages
from umbel_server.flower import strategies
from umbel_server.flower.shown_grid import Shown
from umbel_server.rounds import engine, events
from umbel_server.rounds.events import End, Event, Offer
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.rounds.selection import available, in_turn
from umbel_server.runs.aggregator import aggregator_of
from umbel_server.runs.port import Checkpointing, Port, Spent

log = logging.getLogger("umbel.rounds")

LOOK_SECONDS, SOONEST_LOOK = 0.2, 0.02
"""How often a round that waits for devices looks for them whatever it hears, and at most when presence changes."""


@dataclass(frozen=True)
class LoopConfig:
    """How to train, and when to end early: once held-out metric `until` is at least `at_least`, or a budget is spent.

    A budget of 0 has no limit.
    """

    rounds: int
    learning_rate: float
    epochs: int
    max_steps: int
    seed: int
    until: str = ""
    at_least: float = 0.0
    budget_hours: float = 0.0
    budget_bytes: int = 0

    def reached(self, metrics: Mapping[str, float], count: Callable[[], Spent]) -> str:
        """Why the run has reached its end; empty when it has not. What is spent is only counted where there is a budget."""
        if self.until and metrics.get(self.until, -math.inf) >= self.at_least:
            return f"{self.until} is {metrics[self.until]:.4g}, the goal of {self.at_least:g} is reached"
        if not (self.budget_hours or self.budget_bytes):
            return ""
        spent = count()
        if self.budget_hours and spent.hours >= self.budget_hours:
            return f"the budget of {self.budget_hours:g} hours is spent"
        if self.budget_bytes and spent.bytes >= self.budget_bytes:
            return f"the budget of {self.budget_bytes:,} bytes is spent"
        return ""


def soon(now: float) -> float:
    """When a fleet's devices are looked for again."""
    return now + LOOK_SECONDS


def run_rounds(
    strategy: FedAvg,
    port: Port,
    policy: RoundPolicy,
    config: LoopConfig,
    clock: Callable[[], float] = time.time,
    next_look: Callable[[float], float] = soon,
) -> End | None:
    """Train until the run ends or pauses; returns how, or None when the port says to leave.

    `next_look` says when a round that waits for devices since a time looks for them again.
    """
    return _Loop(strategy, port, policy, config, clock, next_look).run()


class _Loop:
    def __init__(
        self,
        strategy: FedAvg,
        port: Port,
        policy: RoundPolicy,
        config: LoopConfig,
        clock: Callable[[], float],
        next_look: Callable[[float], float],
    ) -> None:
        self._strategy, self._port, self._policy, self._config = strategy, port, policy, config
        self._clock, self._next_look = clock, next_look
        start = port.start(config.seed, config.rounds, policy)
        self._weights = start.weights
        strategies.restore(strategy, start.strategy, list(start.weights))
        specs = [WeightSpec(name, weight.shape, weight.dtype.name) for name, weight in start.weights.items()]
        self._aggregator = aggregator_of(strategy, specs, port.threads)
        deltas = [replace_spec(spec, dtype=port.delta_dtype or spec.dtype) for spec in specs]
        self._vetting = Vetting(deltas, policy.max_norm, policy.norm_multiple, port.threads)
        record = replace(start.record, done=config.reached(start.metrics, port.spent))
        self._state, effects = engine.recover(record, clock())
        self._effects = deque(effects)
        self._seconds: dict[str, float] = {}
        self._looked = -math.inf
        self._configured = 0

    def run(self) -> End | None:
        while True:
            while self._effects:
                effect = self._effects.popleft()
                if isinstance(effect, End):
                    return effect
                self._perform(effect)
            now = self._clock()
            wake = self._state.wake
            if self._state.wants_devices:
                wake = min(wake, self._next_look(now))
            happened = self._port.wait(max(wake, now))
            if happened is None:
                return None
            for event in happened:
                self._step_before_deadlines(event)
            since = self._clock() - self._looked
            if self._state.wants_devices and not 0 <= since < (LOOK_SECONDS if happened else SOONEST_LOOK):
                self._look()
            else:
                self._step(events.Tick(self._clock()))

    def _look(self) -> None:
        self._looked = self._clock()
        self._step(events.Candidates(self._looked, self._port.candidates()))

    def _step_before_deadlines(self, event: Event) -> None:
        """A step at which no deadline acts: what has come is taken in first, however long the server was held up."""
        self._step(replace(event, now=min(event.now, math.nextafter(self._state.wake, -math.inf))))

    def _step(self, event: Event) -> None:
        self._state, effects = engine.step(self._state, event)
        self._effects.extend(effects)

    def _perform(self, effect: events.Effect) -> None:
        match effect:
            case events.Look():
                self._look()
            case events.Open(offers=offers):
                self._offer(effect, offers)
            case events.Assign(offers=offers):
                self._offer(None, offers)
            case events.Fold(id=id, weight=weight):
                self._fold(id, weight)
            case events.Finish():
                self._port.finish(effect)
            case events.Abandon(number=number, attempt=attempt, reason=reason):
                log.warning("round %d, attempt %d abandoned: %s", number, attempt + 1, reason)
                self._clear()
                self._port.abandon(effect)
            case events.Commit():
                self._commit(effect)
            case events.Evaluate(number=number):
                self._evaluate(number)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seconds[what] = self._seconds.get(what, 0.0) + time.perf_counter() - began

    def _offer(self, opened: events.Open | None, offers: tuple[Offer, ...]) -> None:
        with self._timed("publish"):
            self._port.offer(opened, self._messages(offers))
        moments.reached("offered")

    def _messages(self, offers: tuple[Offer, ...]) -> list[tuple[Offer, Message]]:
        nodes = {self._port.node(offer.device): offer for offer in offers}
        if not nodes:
            return []
        messages = {message.metadata.dst_node_id: message for message in self._configure(list(nodes))}
        missing = [nodes[node].device for node in nodes if node not in messages]
        if missing:
            raise UmbelError(f"{type(self._strategy).__name__} configured no training for {missing[0]}")
        return [(offer, messages[node]) for node, offer in nodes.items()]

    def _configure(self, nodes: list[int]) -> list[Message]:
        settings = ConfigRecord(
            {
                "learning-rate": self._config.learning_rate,
                "epochs": self._config.epochs,
                "max-steps": self._config.max_steps,
                "seed": self._config.seed + self._state.number,
            }
        )
        self._configured = self._state.number
        arrays = flower_messages.array_record(self._weights)
        shown = Shown(self._port.grid, nodes)
        return list(self._strategy.configure_train(self._state.number, arrays, settings, shown))

    def _fold(self, id: str, weight: float) -> None:
        moments.reached("uploaded")
        try:
            with self._timed("read"):
                arrival = self._port.arrival(id)
            with self._timed("vet"):
                delta, squares = arrival.update.delta, arrival.update.squares
                self._vetting.accept(arrival.device, delta, arrival.examples, arrival.reported, squares)
            with self._timed("fold"):
                self._aggregator.fold(id, arrival.update, weight, arrival.metrics)
        except UmbelError as error:
            log.warning("round %d goes on without an update: %s", self._state.number, error)
            self._step_before_deadlines(events.Refused(self._clock(), id, str(error)))
            return
        self._step_before_deadlines(events.Folded(self._clock(), id))
        moments.reached("folded")

    def _clear(self) -> None:
        self._aggregator.clear()
        self._vetting.clear()

    def _commit(self, commit: events.Commit) -> None:
        if self._configured != commit.number:  # a strategy learns there which weights it aggregates on
            self._configure([flower_messages.SERVER_NODE])
        try:
            with self._timed("aggregate"), strategies.unchanged_by_failure(self._strategy):
                with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found below
                    weights, sums = self._aggregator.finish(commit.number, self._weights)
                state = strategies.state_of(self._strategy)
                _check_finite(weights, state, type(self._strategy).__name__)
        except UmbelError as error:
            self._step(events.Unable(self._clock(), str(error)))
            return
        self._weights = weights
        metrics = self._port.commit(
            Checkpointing(
                commit.number,
                commit.attempt,
                weights,
                state,
                sums,
                commit.contributors,
                self._state.opened,
                self._seconds,
            )
        )
        self._seconds = {}
        self._clear()
        moments.reached("committed")
        self._step(events.Committed(self._clock(), self._config.reached(metrics, self._port.spent)))

    def _evaluate(self, number: int) -> None:
        there = available(self._policy, self._port.candidates(), (), self._clock())
        devices = in_turn(there.candidates, self._policy.evaluate, number)
        if not devices:
            return
        content = RecordDict(
            {
                "arrays": flower_messages.array_record(self._weights),
                "config": ConfigRecord({"server-round": number}),
            }
        )
        self._port.evaluate(
            number,
            {
                device: Message(content, self._port.node(device), MessageType.EVALUATE, group_id=str(number))
                for device in devices
            },
        )


def _check_finite(weights: Tensors, state: Tensors, name: str) -> None:
    for what, tensors in (("weights", weights), ("moments", state)):
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise UmbelError(
                f"{name} made {what} that are not finite; lower the learning rate or the strategy's own, "
                "or refuse large updates with the policy's max_norm"
            )
