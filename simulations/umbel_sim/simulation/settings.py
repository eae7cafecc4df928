"""The settings of a simulation: everything that its result depends on, beside the task and the data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from umbel.conditions import Rules
from umbel.errors import UmbelError
from umbel_server.rounds import bounds
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.runs.settings import RunSettings

IN_A_DAY = RoundPolicy(over_selection=1.0, deadline=86400.0)
"""A simulation's policy unless it says otherwise: every device that is asked counts, and has a virtual day."""

NO_RULES = Rules()

_FLEET = {"devices": bounds.Bounds(1, 10**9), "min_examples": bounds.Bounds(1, 10**9)}


@dataclass(frozen=True)
class Settings:
    """The settings of a simulation.

    `learning_rate` 0 is the plan's; `until` names a held-out metric and `at_least` its goal, of those of
    which more is better; budgets are virtual hours and bytes that travel, 0: none. `mix` are device classes with
    their shares (umbel_sim.virtual.classes.mix); `availability` is "always", "diurnal" or the path of a trace; `conditions`
    are the rules of the devices' owners.
    """

    devices: int = 100
    partition: str = "iid"
    min_examples: int = 1
    strategy: str = "fedavg"
    options: Mapping[str, float] = field(default_factory=dict)
    rounds: int = 10
    epochs: int = 1
    max_steps: int = 0
    learning_rate: float = 0.0
    seed: int = 0
    until: str = ""
    at_least: float = 0.0
    budget_hours: float = 0.0
    budget_bytes: int = 0
    policy: RoundPolicy = IN_A_DAY
    mix: tuple[str, ...] = ()
    availability: str = "always"
    conditions: Rules = NO_RULES

    def __post_init__(self) -> None:
        try:
            for name, allowed in _FLEET.items():
                bounds.check(name, getattr(self, name), allowed)
            self.run_settings()
        except bounds.OutOfBounds as error:
            raise UmbelError(error.named(f"the simulation's {error.what.replace('_', ' ')}")) from error
        if self.policy.quorum > self.devices:
            raise UmbelError(
                f"the quorum is {self.policy.quorum} updates and there are {self.devices} devices; lower --quorum or raise --devices"
            )
        target = self.policy.target
        if target > self.devices:
            raise UmbelError(
                f"a round wants {target} updates and there are {self.devices} devices; lower --target or raise --devices"
            )

    def run_settings(self) -> RunSettings:
        """The part of them that a run on a real fleet has too; raises OutOfBounds."""
        return RunSettings(
            strategy=self.strategy,
            options=dict(self.options),
            rounds=self.rounds,
            epochs=self.epochs,
            max_steps=self.max_steps,
            learning_rate=self.learning_rate,
            seed=self.seed,
            until=self.until,
            at_least=self.at_least,
            budget_hours=self.budget_hours,
            budget_bytes=self.budget_bytes,
            policy=self.policy,
        )

    @property
    def wanted(self) -> int:
        """Updates that a round wants when all devices can train."""
        return self.policy.wanted(self.devices)
