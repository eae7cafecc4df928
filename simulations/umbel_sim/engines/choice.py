"""Which engine trains virtual devices, and why."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from umbel.errors import UmbelError
from umbel.messages import Blob, Train
from umbel.plan import Plan
from umbel.task import Task
from umbel_sim.engines import Engine, Job
from umbel_sim.engines.litert import LiteRTEngine
from umbel_sim.fleet_data import Fleet
from umbel_sim.simulation.settings import cores

ENGINES = ("auto", "litert", "xla", "ray")

WORTH_MEASURING = 60.0
"""Seconds that the simulation should take on interpreters before another engine is compiled and tried."""

_TRIED, _STEPS = 32, 10


@dataclass(frozen=True)
class Chosen:
    """An engine and the reason for it, in a sentence."""

    engine: Engine
    why: str


def check_engine(name: str) -> None:
    """Raise UmbelError when there is no engine `name`."""
    if name not in ENGINES:
        raise UmbelError(f"there is no engine {name!r}; there are {', '.join(ENGINES)}")


def make_engine(
    name: str,
    task: Task | None,
    plan: Plan,
    fleet: Fleet,
    workers: int,
    updates: int,
    stage: Callable[[str], None],
    address: str = "",
) -> Chosen:
    """The engine `name` with `workers` (0: as many as there are processor cores), to train about `updates` updates.

    "auto" measures: the interpreters, and when the whole would take them long, XLA too. Whether it is XLA shows in the last
    bits of weights. `address` is that of Ray, see umbel_sim.engines.ray_cluster; "" is one on this machine. Raises UmbelError
    on an unknown engine, or when Ray cannot be had.
    """
    check_engine(name)
    if address and name != "ray":
        raise UmbelError(f"the address {address} is that of a Ray; say --engine ray as well")
    match name:
        case "litert":
            return Chosen(LiteRTEngine(plan, fleet, workers or cores()), "asked for")
        case "xla":
            return Chosen(_xla(task, plan, fleet), "asked for")
        case "ray":
            return _ray(plan, fleet, workers, stage, address or "local")
    return _faster(task, plan, fleet, workers or cores(), updates, stage)


def _xla(task: Task | None, plan: Plan, fleet: Fleet) -> Engine:
    if task is None:
        raise UmbelError("XLA compiles the task itself, and there is only its plan")
    from umbel_sim.engines.xla import XLAEngine

    return XLAEngine(task, plan, fleet)


def _faster(
    task: Task | None, plan: Plan, fleet: Fleet, workers: int, updates: int, stage: Callable[[str], None]
) -> Chosen:
    stage("measuring the interpreters")
    interpreters = LiteRTEngine(plan, fleet, workers)
    own = _seconds(interpreters, plan, fleet)
    if own * updates < WORTH_MEASURING:
        took = f"{own * 1e3:.3g} ms for {_STEPS} steps of a device on {workers} interpreters"
        return Chosen(interpreters, f"{took}: all is done before another engine were compiled")
    stage("measuring XLA")
    try:
        compiled = _xla(task, plan, fleet)
        other = _seconds(compiled, plan, fleet)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        return Chosen(interpreters, f"XLA cannot train this plan: {reason}")
    text = f"{own * 1e3:.3g} ms for {_STEPS} steps of a device on {workers} interpreters, {other * 1e3:.3g} ms with XLA"
    if other < own:
        interpreters.close()
        return Chosen(compiled, text)
    compiled.close()
    return Chosen(interpreters, text)


def _seconds(engine: Engine, plan: Plan, fleet: Fleet) -> float:
    """Seconds a device takes for a few steps, with all workers busy, after a first time."""
    weights, nowhere = plan.initial_weights(), Blob("0" * 64, 1)
    how = Train("0" * 16, "measure", 1, nowhere, nowhere, 0.0, learning_rate=1e-6, epochs=1, max_steps=_STEPS, seed=0)
    jobs = [Job(number % fleet.devices, f"device-{number}", weights, how) for number in range(_TRIED)]
    for future in [engine.submit(job) for job in jobs]:
        future.result()
    began = time.perf_counter()
    for future in [engine.submit(job) for job in jobs]:
        future.result()
    return (time.perf_counter() - began) / _TRIED


def _ray(plan: Plan, fleet: Fleet, workers: int, stage: Callable[[str], None], address: str) -> Chosen:
    from umbel_sim.engines.ray_cluster import join

    stage("starting Ray" if address == "local" else f"joining the Ray at {address}")
    cluster = join(address, workers)
    from umbel_sim.engines.ray_workers import RayEngine  # Ray is imported as `join` wants it

    return Chosen(RayEngine(plan, fleet, cluster), f"the agent's own trainer, in actors of the Ray at {address}")
