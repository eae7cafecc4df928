"""Simulating a run: the ServerApp of a real fleet on a grid of virtual devices."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from umbel import __version__
from umbel.errors import UmbelError
from umbel.examples import check_values, fit
from umbel.keras_import import native_stderr_silenced
from umbel.litert import runtime_name
from umbel.plan import Plan
from umbel.task import Task
from umbel.tensors import digest
from umbel_server.compiler import compile_task
from umbel_server.flower.strategies import make_strategy
from umbel_server.runs.server_app import train_on
from umbel_sim.data import Dataset
from umbel_sim.engines.choice import check_engine, make_engine
from umbel_sim.engines.threads import cores
from umbel_sim.fleet_data import Fleet
from umbel_sim.partitions import partition
from umbel_sim.simulation import heap
from umbel_sim.simulation.grid import SimulationGrid
from umbel_sim.simulation.held_out import HeldOut, OnDevices
from umbel_sim.simulation.journal import Journal, Row
from umbel_sim.simulation.outcome import Outcome
from umbel_sim.simulation.settings import Settings
from umbel_sim.simulation.simulated_port import SimulationPort, Untrained
from umbel_sim.simulation.tally import Tally
from umbel_sim.simulation.world import Load, World
from umbel_sim.virtual.availability import Always, Availability, Diurnal
from umbel_sim.virtual.classes import mix
from umbel_sim.virtual.trace import Trace

EVALUATION_BATCH = 200
"""Examples that are evaluated at once on the server's side: fewer calls than with a device's small batches."""

MANY_BATCHES = 200
"""Held-out batches of a device's size from which on compiling for EVALUATION_BATCH pays: it takes seconds."""

NAMED = ("always", "diurnal")
"""Availabilities that are no trace."""

SPREAD_DEVICES = 200
"""Devices whose own accuracy is looked at in the end."""


@dataclass(frozen=True)
class Data:
    """What devices have, what is held out on the server (may be empty), and a name and fingerprint of both."""

    name: str
    fleet: Fleet
    test: Mapping[str, NDArray[Any]]
    fingerprint: str


def data_of(dataset: Dataset, settings: Settings) -> Data:
    """A data set, split as the settings say."""
    fleet = partition(settings.partition, dataset, settings.devices, settings.seed, settings.min_examples)
    fingerprint = " ".join(_digest(arrays) for arrays in (dataset.train, dataset.test, {"labels": dataset.labels}))
    return Data(dataset.name, fleet, dataset.test, fingerprint)


def data_of_fleet(fleet: Fleet, test: Mapping[str, NDArray[Any]]) -> Data:
    """A fleet whose examples a function makes."""
    return Data("a function", fleet, test, f"{fleet.devices} {_digest(fleet.examples(0))}")


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    made = hashlib.sha256()
    for name in sorted(arrays):
        made.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        made.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return made.hexdigest()


class Plans:
    """Plans of one task in `folder`, each compiled once: that of a seed, and one for the evaluation of many examples."""

    def __init__(self, task: Task, folder: Path) -> None:
        self._task, self._folder = task, folder

    def of_seed(self, seed: int, stage: Callable[[str], None]) -> Plan:
        """The plan whose initial weights are drawn by `seed`."""
        return self._compiled(self._task, seed, f"{seed}.plan", "compiling the task", stage)

    def for_evaluation(self, plan: Plan, held_out: int, stage: Callable[[str], None]) -> Plan:
        """`plan`, or one for larger batches that evaluates `held_out` examples sooner."""
        size = plan.manifest.batch_size
        if size >= EVALUATION_BATCH or held_out <= MANY_BATCHES * size:
            return plan
        large = replace(self._task, batch_size=EVALUATION_BATCH)
        return self._compiled(large, 0, "evaluation.plan", "compiling the evaluation", stage)

    def _compiled(self, task: Task, seed: int, name: str, what: str, stage: Callable[[str], None]) -> Plan:
        path = self._folder / name
        if not path.exists():
            stage(what)
            compile_task(task, path, seed=seed, check=False)
        return Plan.open(path)


def run(
    task: Task,
    data: Data,
    settings: Settings,
    *,
    engine: str = "auto",
    workers: int = 0,
    address: str = "",
    folder: Path | None = None,
    told: Callable[[Row], None] = lambda row: None,
    stage: Callable[[str], None] = lambda text: None,
    plans: Plans | None = None,
) -> Outcome:
    """Train virtual devices until the run ends; goes on where `folder` left off.

    `engine`, `workers` and `address` are those of make_engine. `told` hears of every committed round, `stage` of what is
    done before the first. After a KeyboardInterrupt, and whatever else ends it early, the newest checkpoint is in `folder`.
    Runs of one task may share their `plans`. Raises UmbelError.
    """
    check(settings)
    check_engine(engine)
    with tempfile.TemporaryDirectory(prefix="umbel-simulation-") as name:
        plans = plans or Plans(task, Path(name))
        plan = plans.of_seed(settings.seed, stage)
        held_out = len(next(iter(data.test.values()))) if data.test else 0
        large = plans.for_evaluation(plan, held_out, stage)
        return train(plan, large, data, settings, engine, workers, address, folder, told, stage, task)


def check(settings: Settings) -> None:
    """Raise UmbelError when there is no such strategy, option, device class or trace."""
    with _quiet_rounds():
        make_strategy(settings.strategy, settings.options, settings.learning_rate or 1.0)
    mix(settings.mix)
    availability(settings)


def train(
    plan: Plan,
    large: Plan,
    data: Data,
    settings: Settings,
    engine: str = "auto",
    workers: int = 0,
    address: str = "",
    folder: Path | None = None,
    told: Callable[[Row], None] = lambda row: None,
    stage: Callable[[str], None] = lambda text: None,
    task: Task | None = None,
) -> Outcome:
    """As `run`, with the task's `plan` compiled already, and `large`, the same for larger batches or itself.

    Some engines compile the `task` itself; without it they are not tried.
    """
    manifest, fleet = plan.manifest, data.fleet
    _check_until(plan, settings)
    specs = {**manifest.inputs, **manifest.targets}
    first = fit(fleet.examples(0), specs, f"{data.name}, device 0")
    check_values(first.tensors, manifest.value_counts, f"{data.name}, device 0")
    test = fit(data.test, specs, f"{data.name}, held out") if data.test else None
    if test is not None:
        check_values(test.tensors, manifest.value_counts, f"{data.name}, held out")
    tally = Tally(settings.devices, tuple(manifest.metrics))
    with native_stderr_silenced():  # the first interpreter of a process tells which kernels it uses
        on_devices = OnDevices(plan, fleet)
        on_devices(plan.initial_weights(), [0])
    held_out = HeldOut(large, test, workers or cores()) if test is not None else None
    journal = Journal(identity(plan, data, settings), tally, held_out or (lambda weights: {}), on_devices, folder, told)
    updates = settings.rounds * settings.wanted
    chosen = make_engine(_same(engine, journal), task, plan, fleet, workers, updates, stage, address)
    # The actors of Ray have interpreters too: their bits are the same.
    journal.engine = "litert" if chosen.engine.name == "ray" else chosen.engine.name
    world = World(settings.seed, settings.devices, mix(settings.mix), availability(settings), settings.conditions)
    port = SimulationPort(world, Load.of(plan), fleet, plan, chosen.engine, journal, tally)
    stage("")
    try:
        with _quiet_rounds(), heap.steady():
            end = train_on(SimulationGrid(port, settings.run_settings()))
        assert end is not None
        state, reason = str(end.state), end.reason
    except Untrained as error:
        state, reason = "failed", str(error)
    except OSError as error:
        raise UmbelError(f"the simulation's files cannot be written: {error}; what it had is in its folder") from error
    finally:
        chosen.engine.close()
        port.close()
        if held_out is not None:
            held_out.close()
        journal.save()
    snapshot = journal.snapshot()
    assert snapshot is not None
    sampled = np.unique(np.linspace(0, settings.devices - 1, min(settings.devices, SPREAD_DEVICES)).astype(int))
    try:
        spread = on_devices(snapshot.weights, sampled)
    except UmbelError:
        if state != "failed":
            raise
        sampled, spread = sampled[:0], []  # the reason is what one of them has
    return Outcome(
        settings=settings,
        task=manifest.task,
        data=data.name,
        state=state,
        reason=reason,
        rows=tuple(journal.rows),
        weights=snapshot.weights,
        participation=tally.participation,
        statistics=fleet.statistics(),
        on_devices=tuple({"device": int(device), **own} for device, own in zip(sampled, spread, strict=True)),
        engine=chosen.engine.name,
        why_engine=chosen.why,
        workers=chosen.engine.workers,
        wall_seconds=journal.wall_seconds,
        metrics=tuple(spec.name for spec in manifest.metrics),
    )


def _same(engine: str, journal: Journal) -> str:
    """The engine to use: a simulation goes on with the one that it began with, unless another is asked for."""
    return journal.engine if engine == "auto" and journal.engine else engine


@contextmanager
def _quiet_rounds() -> Iterator[None]:
    """Flower's strategies and our rounds log what happens in each; a simulation has hundreds of them a minute, and rows."""
    loggers = [logging.getLogger(name) for name in ("flwr", "umbel.rounds")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def availability(settings: Settings) -> Availability:
    """When devices can be had."""
    match settings.availability:
        case "always":
            return Always()
        case "diurnal":
            return Diurnal(settings.seed)
        case path:
            if not Path(path).exists() and not Path(path).suffix:
                raise UmbelError(f"availability is {', '.join(NAMED)} or a trace in CSV; there is no file {path!r}")
            return Trace(Path(path))


def identity(plan: Plan, data: Data, settings: Settings) -> str:
    """What a checkpoint belongs to: the same plan, data, settings, Umbel and interpreter give the same rounds.

    How long a simulation goes on - rounds, goal, budgets - may change.
    """
    ends = {"rounds": 1, "until": "", "at_least": 0.0, "budget_hours": 0.0, "budget_bytes": 0}
    how = msgspec.to_builtins(replace(settings, **ends))  # type: ignore[arg-type]
    trace = "" if settings.availability in NAMED else digest(Path(settings.availability).read_bytes())
    text = json.dumps(
        [plan.sha256, __version__, runtime_name(), data.name, data.fingerprint, trace, how], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _check_until(plan: Plan, settings: Settings) -> None:
    known = ["loss", *(spec.name for spec in plan.manifest.metrics)]
    if settings.until and settings.until not in known:
        raise UmbelError(f"the plan has no metric {settings.until!r} to train until; it has {', '.join(known)}")
