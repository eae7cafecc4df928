"""Which engine trains virtual devices, and why."""

from collections.abc import Callable
from dataclasses import dataclass

from umbel.errors import UmbelError
from umbel.plan import Plan
from umbel_sim.engines import Engine
from umbel_sim.engines.litert import LiteRTEngine
from umbel_sim.fleet_data import Fleet

ENGINES = ("auto", "litert")


@dataclass(frozen=True)
class Chosen:
    """An engine and the reason for it, in a sentence."""

    engine: Engine
    why: str


def check_engine(name: str) -> None:
    """Raise UmbelError when there is no engine `name`."""
    if name not in ENGINES:
        raise UmbelError(f"there is no engine {name!r}; there are {', '.join(ENGINES)}")


def make_engine(name: str, plan: Plan, fleet: Fleet, workers: int, stage: Callable[[str], None]) -> Chosen:
    """The engine `name`; raises UmbelError on an unknown one."""
    check_engine(name)
    return Chosen(LiteRTEngine(plan, fleet, workers), "the agent's own trainer")
