"""The settings of a run on the command line."""

from typing import Any

import msgspec
import pytest
import typer

from umbel_server.cli.runs import settings as settings_options
from umbel_server.runs.settings import RunSettings


def test_the_defaults_that_help_shows_are_those_of_a_run() -> None:
    defaults = msgspec.to_builtins(RunSettings())
    assert {
        name: f"{defaults[name]:g}" if name != "strategy" else defaults[name] for name in settings_options.DEFAULTS
    } == (settings_options.DEFAULTS)


@pytest.mark.parametrize(
    ("words", "option", "sentence"),
    [
        (["--rounds", "1" + 30 * "0"], "--rounds", "rounds should be at most 1,000,000,000, got 10^30"),
        (["--learning-rate", "inf"], "--learning-rate", "learning rate should be at most 1,000,000, got inf"),
        (["--budget", "hours=1e300"], "--budget", "budget hours should be at most 1,000,000, got 1e+300"),
        (["--budget", "rounds=0"], "--budget", "expected hours=NUMBER"),
    ],
)
def test_settings_beyond_any_run_are_refused_by_option(words: list[str], option: str, sentence: str) -> None:
    app = typer.Typer()

    @app.command()
    @settings_options.takes_settings(changes=False)
    def start(settings: dict[str, Any]) -> None:
        raise AssertionError(settings)

    with pytest.raises(typer.BadParameter) as refused:
        typer.main.get_command(app).main(words, standalone_mode=False)
    assert refused.value.param_hint == option
    assert sentence in refused.value.message
