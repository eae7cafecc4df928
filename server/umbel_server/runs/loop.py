"""The loop that drives the round engine with a port to a fleet and a Flower strategy, which configures and aggregates."""

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from msgspec.structs import replace as replace_spec

from umbel.errors import UmbelError
from umbel.metrics import not_finite
from umbel.tensors import Tensors, WeightSpec
from umbel.updates import Pipeline
from umbel_server import moments
from umbel_server.aggregation import Vetting
from umbel_server.flower import messages as flower_messages
from umbel_server.flower import strategies
from umbel_server.flower.internals import SERVER_NODE
from umbel_server.flower.selected_nodes import SelectedNodes
from umbel_server.rounds import engine, events
from umbel_server.rounds.events import End, Event, Offer
from umbel_server.rounds.selection import available, in_turn
from umbel_server.runs.aggregator import aggregator_of
from umbel_server.runs.port import LOOK_SECONDS, NewCheckpoint
from umbel_server.runs.run_inputs import RunInputs

log = logging.getLogger("umbel.rounds")

MOST_GROWTH = 1000.0
"""The growth of the held-out loss at which a run warns whose policy does not pause it."""

SOONEST_LOOK = 0.02
"""Seconds between two looks for devices at the least, however often presence changes."""


def run_rounds(grid: Grid, inputs: RunInputs) -> End | None:
    """Train until the run ends or pauses; returns how, or None when the port said to leave.

    `grid` is what the strategy sees, with only the devices of a round as its nodes.
    """
    return _Loop(grid, inputs).run()


class _Loop:
    def __init__(self, grid: Grid, inputs: RunInputs) -> None:
        self._grid, self._inputs, self._port = grid, inputs, inputs.port
        self._strategy, settings = inputs.strategy(), inputs.settings
        start = self._port.start(settings)
        self._weights = start.weights
        strategies.restore(self._strategy, start.strategy, list(start.weights))
        specs = [
            WeightSpec(name, weight.shape, weight.dtype.name, name not in start.untrained)
            for name, weight in start.weights.items()
        ]
        pipeline = Pipeline([replace_spec(spec, dtype=self._port.delta_dtype or spec.dtype) for spec in specs])
        self._aggregator = aggregator_of(self._strategy, pipeline, self._port.threads)
        policy = settings.policy
        self._vetting = Vetting(pipeline, policy.max_norm, policy.norm_multiple, self._port.threads)
        record = replace(start.record, done=self._reached(start.metrics))
        self._state, effects = engine.recover(record, self._port.now)
        self._effects = deque(effects)
        self._first_loss = start.metrics.get("loss", math.nan)
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
            now = self._port.now
            wake = self._state.wake
            if self._state.wants_devices:
                wake = min(wake, self._port.next_look(now))
            happened = self._port.wait(max(wake, now))
            if happened is None:
                return None
            for event in happened:
                self._step_before_deadlines(event)
            since = self._port.now - self._looked
            if self._state.wants_devices and not 0 <= since < (LOOK_SECONDS if happened else SOONEST_LOOK):
                self._look()
            else:
                self._step(events.Tick(self._port.now))

    def _look(self) -> None:
        self._looked = self._port.now
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
        settings = self._inputs.settings
        config = ConfigRecord(
            {
                "learning-rate": self._inputs.learning_rate,
                "epochs": settings.epochs,
                "max-steps": settings.max_steps,
                "seed": settings.seed + self._state.number,
            }
        )
        self._configured = self._state.number
        arrays = flower_messages.array_record(self._weights)
        selected = SelectedNodes(self._grid, nodes)
        return list(self._strategy.configure_train(self._state.number, arrays, config, selected))

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
            if broken := sorted(not_finite(arrival.metrics)):
                text = "round %d: %s reports numbers that are not finite for %s; its update counts, the means leave them out"
                log.warning(text, self._state.number, arrival.device, ", ".join(broken))
        except UmbelError as error:
            log.warning("round %d goes on without an update: %s", self._state.number, error)
            self._step_before_deadlines(events.Refused(self._port.now, id, str(error)))
            return
        self._step_before_deadlines(events.Folded(self._port.now, id))
        moments.reached("folded")

    def _clear(self) -> None:
        self._aggregator.clear()
        self._vetting.clear()

    def _commit(self, commit: events.Commit) -> None:
        if self._configured != commit.number:  # a strategy learns there which weights it aggregates on
            self._configure([SERVER_NODE])
        try:
            with self._timed("aggregate"), strategies.unchanged_by_failure(self._strategy):
                with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found below
                    weights, sums = self._aggregator.finish(commit.number, self._weights)
                state = strategies.state_of(self._strategy)
                _check_finite(weights, state, type(self._strategy).__name__)
        except UmbelError as error:
            self._step(events.Unable(self._port.now, str(error)))
            return
        self._weights = weights
        metrics = self._port.commit(
            NewCheckpoint(
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
        if diverged := self._diverged(metrics):
            log.warning("round %d: %s", commit.number, diverged)
            if self._inputs.settings.policy.max_loss_growth:
                self._effects.clear()
                self._effects.append(End("paused", diverged))
                return
        self._step(events.Committed(self._port.now, self._reached(metrics)))

    def _diverged(self, metrics: Mapping[str, float]) -> str:
        """The sentence that the run diverges, or "". Metrics that are not finite are left out of `metrics`."""
        loss = metrics.get("loss", math.nan)
        if math.isnan(self._first_loss):
            self._first_loss = loss
            return ""
        most = (self._inputs.settings.policy.max_loss_growth or MOST_GROWTH) * max(1.0, self._first_loss)
        if loss <= most:
            return ""
        now = "not finite" if math.isnan(loss) else f"{loss:.4g}"
        return (
            f"the run diverges: its held-out loss is {now}, it was {self._first_loss:.4g} at first; "
            "go on from an earlier checkpoint with a lower learning rate, or refuse large updates by max_norm"
        )

    def _reached(self, metrics: Mapping[str, float]) -> str:
        """The reason that the run has reached its end, or "". The cost is counted only for a run with a budget."""
        settings = self._inputs.settings
        if settings.until and metrics.get(settings.until, -math.inf) >= settings.at_least:
            return f"{settings.until} is {metrics[settings.until]:.4g}, the goal of {settings.at_least:g} is reached"
        if not (settings.budget_hours or settings.budget_bytes):
            return ""
        spent = self._port.cost()
        if settings.budget_hours and spent.hours >= settings.budget_hours:
            return f"the budget of {settings.budget_hours:g} hours is spent"
        if settings.budget_bytes and spent.bytes >= settings.budget_bytes:
            return f"the budget of {settings.budget_bytes:,} bytes is spent"
        return ""

    def _evaluate(self, number: int) -> None:
        policy = self._inputs.settings.policy
        there = available(policy, self._port.candidates(), (), self._port.now)
        devices = in_turn(there.candidates, policy.evaluate, number)
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
