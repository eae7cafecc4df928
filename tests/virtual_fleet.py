"""A simulation without TensorFlow or LiteRT: the real port, journal and round loop, and an engine that makes numbers up."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from tests.bare_plan import bare_plan
from umbel.conditions import Rules
from umbel.tensors import Tensors, WeightSpec
from umbel.updates import Pipeline
from umbel_server.rounds.events import End, Event
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.runs.server_app import train_on
from umbel_server.runs.settings import RunSettings
from umbel_sim.data import FunctionFleet
from umbel_sim.engines import Done, Job, done
from umbel_sim.simulation.grid import SimulationGrid
from umbel_sim.simulation.journal import Journal, Row
from umbel_sim.simulation.simulated_port import SimulationPort
from umbel_sim.simulation.tally import Tally
from umbel_sim.simulation.world import Load, World
from umbel_sim.virtual.availability import Always, Availability
from umbel_sim.virtual.classes import DeviceClass, Mix

EXAMPLES = 10
EVEN = DeviceClass("even", seconds_per_step=1.0, download=1e9, upload=1e9, latency=0.5, spread=0.0)
"""A step a second: an assignment of EXAMPLES examples in batches of one takes 11 seconds, and it uploads at once."""


def no_loss(job: Job) -> float:
    return 1.0


LOAD = Load(down=68, up=68, operations=24.0)


class NumbersEngine:
    """An Engine whose updates are drawn by device and round; `begun` are the devices that were trained."""

    name = "numbers"

    def __init__(self, loss: Callable[[Job], float] = no_loss, workers: int = 2) -> None:
        self.workers, self.begun = workers, list[str]()
        self._loss = loss

    def submit(self, job: Job) -> "Future[Done]":
        self.begun.append(job.name)
        rng = np.random.default_rng([job.device, job.how.round])
        delta = {name: rng.normal(0, 0.1, weight.shape).astype(weight.dtype) for name, weight in job.weights.items()}
        future: Future[Done] = Future()
        pipeline = Pipeline([WeightSpec(name, weight.shape) for name, weight in job.weights.items()])
        future.set_result(done(pipeline, job, delta, {"loss": self._loss(job), "accuracy": 0.5}, EXAMPLES))
        return future

    def close(self) -> None:
        pass


class Watched(SimulationPort):
    """The port, and what time it was at each thing that happened."""

    times: list[float]

    def wait(self, until: float) -> list[Event] | None:
        happened = super().wait(until)
        self.times.append(self.now)
        return happened


class VirtualRun:
    """One run on `devices` virtual devices."""

    def __init__(
        self,
        folder: Path,
        devices: int = 10,
        kind: DeviceClass = EVEN,
        policy: RoundPolicy | None = None,
        availability: Availability | None = None,
        conditions: Rules | None = None,
        engine: NumbersEngine | None = None,
        seed: int = 0,
        kinds: Mix | None = None,
        saved: Path | None = None,
        identity: str = "me",
        told: Callable[[Row], None] = lambda row: None,
        evaluate: Callable[[Tensors], dict[str, float]] = lambda weights: {"accuracy": 0.5},
    ) -> None:
        self.plan = bare_plan(folder / "bare.plan")
        self.policy = policy or RoundPolicy(over_selection=1.0, deadline=1000.0, fraction=1.0)
        self.fleet = FunctionFleet(made, devices, lambda device: EXAMPLES)
        self.engine = engine or NumbersEngine()
        self.tally = Tally(devices, tuple(self.plan.manifest.metrics))
        on_devices = lambda weights, some: [{"loss": 1.0, "examples": 10.0} for _ in some]  # noqa: E731
        self.journal = Journal(identity, self.tally, evaluate, on_devices, saved, told)
        world = World(seed, devices, kinds or Mix((kind,), (1.0,)), availability or Always(), conditions or Rules())
        self.port = Watched(world, LOAD, self.fleet, self.plan, self.engine, self.journal, self.tally)
        self.port.times = []
        self.seed = seed

    def run(self, rounds: int = 3, strategy: str = "fedavg") -> End | None:
        settings = RunSettings(strategy, rounds=rounds, learning_rate=0.25, seed=self.seed, policy=self.policy)
        return train_on(SimulationGrid(self.port, settings))

    @property
    def rows(self) -> list[Row]:
        """A row a checkpoint, without what is measured on the real clock."""
        return [{name: value for name, value in row.items() if name != "wall_seconds"} for row in self.journal.rows]

    @property
    def weights(self) -> Tensors:
        snapshot = self.journal.snapshot()
        assert snapshot is not None
        return snapshot.weights


def made(device: int) -> dict[str, Any]:
    return {"x": np.zeros((EXAMPLES, 1), np.float32), "y": np.full((EXAMPLES,), device % 3)}


def same_bytes(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def fate(kind: DeviceClass = EVEN) -> float:
    """Seconds from offer to upload of an assignment of EXAMPLES steps, but for the bytes."""
    return 2 * kind.latency + EXAMPLES * kind.seconds_per_step
