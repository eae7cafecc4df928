"""The settings of a run as a Flower run's configuration holds them: numbers and strings by name."""

import sys
from collections.abc import Mapping

import msgspec
from flwr.app import UserConfig, UserConfigValue

from umbel.errors import NOT_DECODED, UmbelError
from umbel_server.rounds import bounds
from umbel_server.rounds.policy import RoundPolicy, scalar_fields
from umbel_server.runs.settings import RunSettings

_FINITE = bounds.Bounds(-sys.float_info.max, sys.float_info.max)
_OPTION = "strategy."


def settings_of(config: UserConfig) -> RunSettings:
    """The settings that a run's configuration names; what it does not name has its default.

    Names: `strategy`, `strategy.OPTION`, `rounds`, `epochs`, `max-steps`, `learning-rate` (0: the plan's), `seed`, `until` and
    `at-least`, `budget-hours`, `budget-bytes`, and those of `policy_of`. Raises UmbelError on a value that cannot be used.
    """
    defaults = RunSettings()
    options = {
        name.removeprefix(_OPTION): float(_number(config, name, 0)) for name in config if name.startswith(_OPTION)
    }
    policy = policy_of(config)
    try:
        return RunSettings(
            strategy=text_of(config, "strategy", defaults.strategy),
            options=options,
            rounds=int(_number(config, "rounds", defaults.rounds)),
            epochs=int(_number(config, "epochs", defaults.epochs)),
            max_steps=int(_number(config, "max-steps", defaults.max_steps)),
            learning_rate=float(_number(config, "learning-rate", defaults.learning_rate)),
            seed=int(_number(config, "seed", defaults.seed)),
            until=text_of(config, "until", defaults.until),
            at_least=float(_number(config, "at-least", defaults.at_least)),
            budget_hours=float(_number(config, "budget-hours", defaults.budget_hours)),
            budget_bytes=int(_number(config, "budget-bytes", defaults.budget_bytes)),
            policy=policy,
        )
    except bounds.OutOfBounds as error:
        raise UmbelError(error.named(f"the run's {error.what.replace('_', '-')}")) from error


def policy_of(config: UserConfig) -> RoundPolicy:
    """The round policy in a run's configuration: `policy` is all of it as JSON, `over-selection`, `quorum`, ... its fields.

    Raises UmbelError on a value that cannot be used.
    """
    try:
        given = msgspec.json.decode(text_of(config, "policy", "{}"), type=dict[str, object])
        for name in scalar_fields():
            if (value := config.get(name.replace("_", "-"))) is not None:
                given[name] = value
        return msgspec.convert(given, RoundPolicy)
    except NOT_DECODED as error:
        raise UmbelError(f"the run's round policy cannot be used: {error}") from error


def text_of(config: UserConfig, name: str, default: str) -> str:
    """The value of `name` as text, or `default` when it is not set."""
    return str(config.get(name, default))


def _number(config: Mapping[str, UserConfigValue], name: str, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UmbelError(f"the run's {name} should be a number, got {value!r}")
    try:
        bounds.check(f"the run's {name}", value, _FINITE)
    except bounds.OutOfBounds as error:
        raise UmbelError(str(error)) from error
    return value
