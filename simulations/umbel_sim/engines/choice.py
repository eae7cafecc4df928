"""The choice of the engine that trains virtual devices, with its reason."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from umbel.errors import UmbelError
from umbel.messages import Blob, Train
from umbel.plan import Plan
from umbel.task import Task
from umbel_sim.engines import Engine, Job
from umbel_sim.engines.litert import litert_engine
from umbel_sim.engines.native import native_engine
from umbel_sim.engines.native.layers import Unsupported
from umbel_sim.engines.threads import cores
from umbel_sim.fleet_data import Fleet

ENGINES = ("auto", "native", "litert", "xla", "ray")

WORTH_MEASURING = 60.0
"""Seconds that the simulation should take on interpreters before another engine is compiled and tried."""

_EACH, _MOST, _STEPS = 3, 48, 10


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

    "auto" measures: the interpreters, compiled code where the task is a chain of layers that it knows, and when the whole
    would take long, XLA too. The choice shows in the last bits of the weights. `address` is that of Ray, see
    umbel_sim.engines.ray_cluster; "" is one on this machine. Raises UmbelError on an unknown engine, one that does not
    train this task, or when Ray cannot be had.
    """
    check_engine(name)
    if address and name != "ray":
        raise UmbelError(f"an address ({address}) is for Ray only; add --engine ray")
    match name:
        case "native":
            return Chosen(_native(task, plan, fleet, workers or cores()), "asked for")
        case "litert":
            return Chosen(litert_engine(plan, fleet, workers or cores()), "asked for")
        case "xla":
            return Chosen(_xla(task, plan, fleet), "asked for")
        case "ray":
            return _ray(plan, fleet, workers, stage, address or "local")
    return _faster(task, plan, fleet, workers or cores(), updates, stage)


def _native(task: Task | None, plan: Plan, fleet: Fleet, workers: int) -> Engine:
    if task is None:
        raise Unsupported("the native engine trains a task's layers, and there is only its plan")
    return native_engine(task, plan, fleet, workers)


def _xla(task: Task | None, plan: Plan, fleet: Fleet) -> Engine:
    if task is None:
        raise UmbelError("XLA compiles the task itself, and there is only its plan")
    from umbel_sim.engines.xla import XLAEngine

    return XLAEngine(task, plan, fleet)


def _faster(
    task: Task | None, plan: Plan, fleet: Fleet, workers: int, updates: int, stage: Callable[[str], None]
) -> Chosen:
    stage("measuring the interpreters")
    best: Engine = litert_engine(plan, fleet, workers)
    least = _seconds(best, plan, fleet)
    told = f"{_STEPS} steps of a device take {least * 1e3:.3g} ms on {workers} interpreters"
    try:
        compiled = _native(task, plan, fleet, workers)
        took = _seconds(compiled, plan, fleet)
    except Exception as error:
        told += f" ({_reason(error)})"
    else:
        told += f", {took * 1e3:.3g} ms compiled"
        best, other, least = (compiled, best, took) if took < least else (best, compiled, least)
        other.close()
    if least * updates < WORTH_MEASURING:
        return Chosen(best, f"{told}; all is done before XLA had compiled")
    stage("measuring XLA")
    try:
        xla = _xla(task, plan, fleet)
        took = _seconds(xla, plan, fleet)
    except Exception as error:
        return Chosen(best, f"{told}; XLA cannot train this plan: {_reason(error)}")
    best, other = (xla, best) if took < least else (best, xla)
    other.close()
    return Chosen(best, f"{told}, {took * 1e3:.3g} ms with XLA")


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _seconds(engine: Engine, plan: Plan, fleet: Fleet) -> float:
    """Seconds a device takes for a few steps, with all workers busy, after a first time."""
    weights, nowhere = plan.initial_weights(), Blob("0" * 64, 1)
    how = Train("0" * 16, "measure", 1, nowhere, nowhere, 0.0, learning_rate=1e-6, epochs=1, max_steps=_STEPS, seed=0)
    tried = min(_EACH * engine.workers, _MOST)
    jobs = [Job(number % fleet.devices, f"device-{number}", weights, how) for number in range(tried)]
    for future in [engine.submit(job) for job in jobs]:
        future.result()
    began = time.perf_counter()
    for future in [engine.submit(job) for job in jobs]:
        future.result()
    return (time.perf_counter() - began) / tried


def _ray(plan: Plan, fleet: Fleet, workers: int, stage: Callable[[str], None], address: str) -> Chosen:
    from umbel_sim.engines.ray_cluster import join

    stage("starting Ray" if address == "local" else f"joining the Ray at {address}")
    cluster = join(address, workers)
    from umbel_sim.engines.ray_workers import RayEngine  # Ray is imported as `join` wants it

    return Chosen(RayEngine(plan, fleet, cluster), f"the agent's own trainer, in actors of the Ray at {address}")
