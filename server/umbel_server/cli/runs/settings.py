"""The options of a run's settings, shared by start and clone: training, end, and round policy."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import typer

from umbel_server.cli.options import parameter
from umbel_server.cli.runs import policy as policy_options
from umbel_server.cli.values import budget, goal, number_pair
from umbel_server.rounds import bounds

TRAINING, END = "Training", "Start and end"

DEFAULTS = {"strategy": "fedavg", "epochs": "1", "max_steps": "0", "learning_rate": "0", "seed": "0", "rounds": "10"}
"""The defaults of RunSettings, repeated here because its import takes Flower."""

Command = Callable[..., None]


def takes_settings(changes: bool) -> Callable[[Command], Command]:
    """Replace a command's parameter `settings` by one option for each setting.

    The command receives the given settings in the form of the API. With `changes` they change another run's settings, so
    --help shows no defaults.
    """

    def replace(command: Command) -> Command:
        training = _training(changes)
        policy = policy_options.parameters(changes)

        @functools.wraps(command)
        def called(**given: Any) -> None:
            chosen = {option.name: given.pop(option.name) for option in training}
            fields = {option.name: given.pop(option.name) for option in policy}
            settings = _settings(chosen)
            if rules := policy_options.policy_of(fields.pop(policy_options.FILE), fields, changes):
                settings["policy"] = rules
            command(**given, settings=settings)

        own = [option for option in inspect.signature(command).parameters.values() if option.name != "settings"]
        needed = [option for option in own if option.default is inspect.Parameter.empty]
        every = [*needed, *training, *(option for option in own if option not in needed), *policy]
        called.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        called.__annotations__ = {option.name: option.annotation for option in every}
        return called

    return replace


def _training(changes: bool) -> list[inspect.Parameter]:
    made = []
    for name, kind, panel, help, more in (
        ("strategy", str, TRAINING, "a Flower strategy, for example fedavg, fedadam, krum", {"metavar": "NAME"}),
        (
            "option",
            list[str],
            TRAINING,
            "set a strategy option; repeatable",
            {"names": ("--option", "-o"), "metavar": "NAME=NUMBER"},
        ),
        ("epochs", int, TRAINING, "passes over a device's examples in a round", {"metavar": "N", "min": 1}),
        ("max_steps", int, TRAINING, "end a device's round after N steps (0: no limit)", {"metavar": "N", "min": 0}),
        ("learning_rate", float, TRAINING, "learning rate of a local step (0: the plan's)", {"metavar": "X", "min": 0}),
        ("encrypt_commands", bool, TRAINING, "encrypt the run's commands for each device", {}),
        ("seed", int, TRAINING, "seed of the order of devices and examples", {"metavar": "N", "min": 0}),
        ("rounds", int, END, "rounds to train", {"metavar": "N", "min": 1}),
        ("until", str, END, "end early at this value on the held-out examples", {"metavar": "METRIC>=VALUE"}),
        (
            "budget",
            list[str],
            END,
            "end when a budget is spent: hours=2,bytes=500MB,rounds=100; repeatable",
            {"metavar": "NAME=AMOUNT"},
        ),
    ):
        default = "" if changes or "(0:" in help else DEFAULTS.get(name, "")
        made.append(parameter(name, kind, help, panel, default, **more))
    return made


def _settings(chosen: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given (not None)."""
    option, until, spend = chosen.pop("option"), chosen.pop("until"), budget(chosen.pop("budget") or ())
    settings = {name: value for name, value in chosen.items() if value is not None}
    if option:
        settings["options"] = dict(number_pair(text, "--option") for text in option)
    if until is not None:
        settings |= goal(until)
    if "rounds" in settings and "rounds" in spend:
        raise typer.BadParameter("it sets the same as --rounds; give one of them", param_hint="--budget rounds=")
    for given in (settings, spend):
        for name in given.keys() & bounds.SETTINGS.keys():
            option = "--budget" if given is spend else f"--{name.replace('_', '-')}"
            try:
                bounds.check(name.replace("_", " "), given[name], bounds.SETTINGS[name])
            except ValueError as error:
                raise typer.BadParameter(str(error), param_hint=option) from error
    return settings | spend
