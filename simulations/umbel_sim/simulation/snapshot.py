"""The snapshot that a simulation continues from: its newest checkpoint and the open assignments."""

from collections.abc import Mapping
from dataclasses import dataclass

from umbel.messages import Train
from umbel.tensors import Tensors
from umbel_server.rounds.open_assignments import OpenAssignment


@dataclass(frozen=True)
class GivenAssignment:
    """An assignment as it was offered, at virtual second `offered`, to device number `device` called `name`."""

    id: str
    device: int
    name: str
    base: int
    closes: float
    offered: float
    how: Train

    @property
    def work(self) -> OpenAssignment:
        """As the round engine knows it."""
        return OpenAssignment(self.id, self.name, self.base, self.closes)


@dataclass(frozen=True)
class Snapshot:
    """Checkpoint number `version`, made at virtual second `now`, after `made` assignments in all.

    `bases` are the weights of the checkpoints that assignments under way train from; `assigned` is when devices were last
    given one, where the policy asks for it.
    """

    version: int
    now: float
    made: int
    weights: Tensors
    strategy: Tensors
    bases: Mapping[int, Tensors]
    work: tuple[GivenAssignment, ...]
    assigned: tuple[tuple[int, float], ...] = ()
