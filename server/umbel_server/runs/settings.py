"""What an administrator says of a run when it is started."""

import msgspec

from umbel_server.rounds import bounds
from umbel_server.rounds.policy import RoundPolicy


class RunSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a run trains.

    `strategy` is a name of umbel_server.flower.strategies with its `options`; devices train each round for `epochs` (or
    `max_steps` > 0 steps) with `learning_rate` (0: the plan's), under the round `policy`. `held_out` is the digest of an
    `.npz` that every checkpoint is evaluated on. The run ends early once held-out metric `until` is at least `at_least`,
    or when it has taken `budget_hours` or its weights and updates have taken `budget_bytes` on the way (0: no limit).
    With `encrypt_commands` its work leaves only sealed for the device, also where the population does not ask for that.
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


def run_config(plan: str, settings: RunSettings) -> dict[str, bool | float | int | str]:
    """The settings as the ServerApp reads them from any Flower run's configuration."""
    config: dict[str, bool | float | int | str] = {
        "plan": plan,
        "strategy": settings.strategy,
        "rounds": settings.rounds,
        "epochs": settings.epochs,
        "max-steps": settings.max_steps,
        "seed": settings.seed,
        "policy": msgspec.json.encode(settings.policy).decode(),
        "budget-hours": settings.budget_hours,
        "budget-bytes": settings.budget_bytes,
        "until": settings.until,
        "at-least": settings.at_least,
    }
    if settings.learning_rate:
        config["learning-rate"] = settings.learning_rate
    return config | {f"strategy.{name}": value for name, value in settings.options.items()}
