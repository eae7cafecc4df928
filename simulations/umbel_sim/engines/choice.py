"""Which engine trains virtual devices, and why."""

from collections.abc import Callable
from dataclasses import dataclass

from umbel.errors import UmbelError
from umbel.plan import Plan
from umbel_sim.engines import Engine
from umbel_sim.engines.litert import LiteRTEngine
from umbel_sim.fleet_data import Fleet
from umbel_sim.simulation.settings import cores

ENGINES = ("auto", "litert", "ray")


@dataclass(frozen=True)
class Chosen:
    """An engine and the reason for it, in a sentence."""

    engine: Engine
    why: str


def make_engine(
    name: str, plan: Plan, fleet: Fleet, workers: int, stage: Callable[[str], None], address: str = ""
) -> Chosen:
    """The engine `name` with `workers` (0: as many as there are processor cores).

    `address` is that of Ray, see umbel_sim.engines.ray_cluster; "" is one on this machine. Raises UmbelError on an unknown
    engine, or when Ray cannot be had.
    """
    if name not in ENGINES:
        raise UmbelError(f"there is no engine {name!r}; there are {', '.join(ENGINES)}")
    if name == "ray":
        return _ray(plan, fleet, workers, stage, address or "local")
    if address:
        raise UmbelError(f"the address {address} is that of a Ray; say --engine ray as well")
    return Chosen(LiteRTEngine(plan, fleet, workers or cores()), "the agent's own trainer")


def _ray(plan: Plan, fleet: Fleet, workers: int, stage: Callable[[str], None], address: str) -> Chosen:
    from umbel_sim.engines.ray_cluster import join

    stage("starting Ray" if address == "local" else f"joining the Ray at {address}")
    cluster = join(address, workers)
    from umbel_sim.engines.ray_workers import RayEngine  # Ray is imported as `join` wants it

    return Chosen(RayEngine(plan, fleet, cluster), f"the agent's own trainer, in actors of the Ray at {address}")
