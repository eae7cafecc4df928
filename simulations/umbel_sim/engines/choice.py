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

ENGINES = ("auto", "litert", "xla")

WORTH_MEASURING = 60.0
"""Seconds that the simulation should take on interpreters before another engine is compiled and tried."""

_TRIED, _STEPS = 32, 10


@dataclass(frozen=True)
class Chosen:
    """An engine and the reason for it, in a sentence."""

    engine: Engine
    why: str


def make_engine(
    name: str, task: Task, plan: Plan, fleet: Fleet, workers: int, updates: int, stage: Callable[[str], None]
) -> Chosen:
    """The engine `name`, to train about `updates` updates; raises UmbelError on an unknown one.

    "auto" measures: the interpreters, and when the whole would take them long, XLA too. Which engine it takes shows in the
    last bits of weights.
    """
    match name:
        case "litert":
            return Chosen(LiteRTEngine(plan, fleet, workers), "asked for")
        case "xla":
            return Chosen(_xla(task, plan, fleet), "asked for")
        case "auto":
            return _faster(task, plan, fleet, workers, updates, stage)
    raise UmbelError(f"there is no engine {name!r}; there are {', '.join(ENGINES)}")


def _xla(task: Task, plan: Plan, fleet: Fleet) -> Engine:
    from umbel_sim.engines.xla import XLAEngine

    return XLAEngine(task, plan, fleet)


def _faster(task: Task, plan: Plan, fleet: Fleet, workers: int, updates: int, stage: Callable[[str], None]) -> Chosen:
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
