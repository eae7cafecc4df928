"""How a run trains, as options: those of its training, of its end, and of its round policy, for start and clone alike."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from umbel_server.cli import policy_options
from umbel_server.cli.run_options import budget, goal, number_pair, parameter

TRAINING, END = "Training", "Where it starts and ends"

DEFAULTS = {"strategy": "fedavg", "epochs": "1", "max_steps": "0", "learning_rate": "0", "seed": "0", "rounds": "10"}
"""Those of RunSettings, which takes Flower to import."""

Command = Callable[..., None]


def takes_settings(changes: bool) -> Callable[[Command], Command]:
    """Replace a command's parameter `settings` by an option a setting.

    The command gets the settings that were given as the API reads them. With `changes` they change another run's, so no
    defaults are shown.
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
        every = [*own, *training, *policy]
        called.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        called.__annotations__ = {option.name: option.annotation for option in every}
        return called

    return replace


def _training(changes: bool) -> list[inspect.Parameter]:
    def shown(name: str) -> str | bool:
        return False if changes else DEFAULTS[name]

    strategy = typer.Option(
        help="a Flower strategy, for example fedavg, fedadam, krum",
        show_default=shown("strategy"),
        rich_help_panel=TRAINING,
    )
    option = typer.Option(
        "--option", "-o", metavar="NAME=NUMBER", help="of the strategy; may be repeated", rich_help_panel=TRAINING
    )
    epochs = typer.Option(
        min=1,
        help="passes over a device's examples in a round",
        show_default=shown("epochs"),
        rich_help_panel=TRAINING,
    )
    max_steps = typer.Option(
        min=0,
        help="end a device's round after so many steps (0: no limit)",
        show_default=shown("max_steps"),
        rich_help_panel=TRAINING,
    )
    learning_rate = typer.Option(
        min=0.0, help="of a local step (0: the plan's)", show_default=shown("learning_rate"), rich_help_panel=TRAINING
    )
    seed = typer.Option(min=0, help="orders devices and examples", show_default=shown("seed"), rich_help_panel=TRAINING)
    rounds = typer.Option(min=1, help="rounds to train", show_default=shown("rounds"), rich_help_panel=END)
    until = typer.Option(
        "--until", metavar="METRIC>=VALUE", help="end early, by the held-out examples", rich_help_panel=END
    )
    budgets = typer.Option(
        "--budget",
        metavar="hours=,rounds=,bytes=",
        help="end when it is spent: hours=2,bytes=500MB; may be repeated",
        rich_help_panel=END,
    )
    return [
        parameter("strategy", Annotated[str | None, strategy]),
        parameter("option", Annotated[list[str] | None, option]),
        parameter("epochs", Annotated[int | None, epochs]),
        parameter("max_steps", Annotated[int | None, max_steps]),
        parameter("learning_rate", Annotated[float | None, learning_rate]),
        parameter("seed", Annotated[int | None, seed]),
        parameter("rounds", Annotated[int | None, rounds]),
        parameter("until", Annotated[str | None, until]),
        parameter("budget", Annotated[list[str] | None, budgets]),
    ]


def _settings(chosen: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given (not None)."""
    option, until, spend = chosen.pop("option"), chosen.pop("until"), budget(chosen.pop("budget") or ())
    settings = {name: value for name, value in chosen.items() if value is not None}
    if option:
        settings["options"] = dict(number_pair(text, "--option") for text in option)
    if until is not None:
        settings |= goal(until)
    if "rounds" in settings and "rounds" in spend:
        raise typer.BadParameter("it says the same as --rounds; give one of them", param_hint="--budget rounds=")
    return settings | spend
