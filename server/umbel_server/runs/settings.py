"""The settings of a run, which an administrator gives when it is started; they are checked here and nowhere else."""

import msgspec

from umbel_server.rounds import bounds
from umbel_server.rounds.policy import RoundPolicy


class RunSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a run trains.

    `strategy` is a name of umbel_server.flower.strategies with its `options`. In each round devices train for `epochs` (or
    `max_steps` > 0 steps) with `learning_rate` (0: the plan's), under the round `policy`. `held_out` is the digest of an
    `.npz` file on which every checkpoint is evaluated. The run ends early once held-out metric `until` is at least
    `at_least`, after `budget_hours`, or when `budget_bytes` of weights and updates have travelled (0: no limit). With
    `encrypt_commands` the run's commands are always sealed for their device, even in a population that does not ask for it.
    Raises OutOfBounds on a number outside bounds.SETTINGS.
    """

    strategy: str = "fedavg"
    options: dict[str, float] = {}
    rounds: int = 10
    epochs: int = 1
    max_steps: int = 0
    learning_rate: float = 0.0
    seed: int = 0
    held_out: str = ""
    until: str = ""
    at_least: float = 0.0
    budget_hours: float = 0.0
    budget_bytes: int = 0
    encrypt_commands: bool = False
    policy: RoundPolicy = RoundPolicy()

    def __post_init__(self) -> None:
        for name, allowed in bounds.SETTINGS.items():
            bounds.check(name, getattr(self, name), allowed)


# Made here, in one thread: msgspec 0.22 crashes when several threads convert nested structs for the first time at once.
msgspec.json.Decoder(RunSettings)
