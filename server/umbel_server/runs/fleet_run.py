"""One run on a fleet: what the parts of its port have in common."""

from collections.abc import Callable
from dataclasses import dataclass

from umbel.messages import Blob
from umbel.plan import Plan
from umbel_server.fleet.parts import Fleet


@dataclass(frozen=True)
class FleetRun:
    """A run of `plan` on the devices of one population.

    Attributes:
        id: the run's id, hexadecimal.
        plan_blob: the address of the plan for devices.
        clock: gives Unix seconds.
        sealed: whether the run's commands must be sealed for their device.
    """

    fleet: Fleet
    id: str
    population: str
    plan: Plan
    plan_blob: Blob
    clock: Callable[[], float]
    sealed: bool = False

    @property
    def now(self) -> float:
        """The time in Unix seconds."""
        return self.clock()
