"""What the options of `umbel runs` mean, and that every field of the round policy has one."""

import inspect
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from umbel_server.cli import durations, quotas
from umbel_server.cli.devices import invitations
from umbel_server.cli.runs import settings as settings_options
from umbel_server.cli.runs.options import budget, checkpoint, goal, number_pair, size
from umbel_server.cli.runs.policy import FIELDS, parameters, policy_of
from umbel_server.cli.runs.start import clone, start
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.runs.settings import RunSettings


@pytest.mark.parametrize(
    ("texts", "settings"),
    [
        ([], {}),
        (["hours=2"], {"budget_hours": 2.0}),
        (["hours=0.5, rounds=100"], {"budget_hours": 0.5, "rounds": 100}),
        (["bytes=2GB", "rounds=7"], {"budget_bytes": 2_000_000_000, "rounds": 7}),
        (["bytes=1.5 kB"], {"budget_bytes": 1500}),
        (["bytes=0"], {"budget_bytes": 0}),
    ],
)
def test_budgets(texts: list[str], settings: dict[str, Any]) -> None:
    assert budget(texts) == settings


NO_BUDGETS = """hours hours= hours=-1 hours=nan hours=inf rounds=0 rounds=1.5 bytes=2XB bytes=GB bytes=-1 bytes=1e400
    money=3 hours=1,,rounds=2 ,""".split()


@pytest.mark.parametrize("text", NO_BUDGETS)
def test_a_budget_that_is_none_is_refused_with_what_one_is(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected hours=NUMBER, rounds=NUMBER or bytes=SIZE"):
        budget([text])


def test_a_budget_is_given_once() -> None:
    with pytest.raises(typer.BadParameter, match="hours is given twice"):
        budget(["hours=1", "hours=2"])


def test_sizes_are_decimal() -> None:
    assert [size(text) for text in ("5", "5B", "5kB", "5MB", "5GB", "5TB")] == [5, 5, 5e3, 5e6, 5e9, 5e12]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("", {}),
        ("latest", {"from_run": "latest"}),
        ("a1b2@0", {"from_run": "a1b2", "from_round": 0}),
        ("latest@12", {"from_run": "latest", "from_round": 12}),
    ],
)
def test_checkpoints_to_start_from(text: str, source: dict[str, Any]) -> None:
    assert checkpoint(text) == source


@pytest.mark.parametrize("text", ["@", "@3", "a@", "a@b", "a@-1", "a@1@2", "a@²"])
def test_a_checkpoint_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected RUN or RUN@ROUND"):
        checkpoint(text)


def test_goals_and_pairs() -> None:
    assert goal(" accuracy >= 0.97 ") == {"until": "accuracy", "at_least": 0.97}
    assert goal("") == {"until": "", "at_least": 0.0}
    assert number_pair("eta=0.1", "-o") == ("eta", 0.1)
    for text in ("better", ">=1", "accuracy>=", "accuracy>=much", "accuracy>=nan"):
        with pytest.raises(typer.BadParameter, match="expected METRIC>=VALUE"):
            goal(text)
    for text in ("eta", "eta=", "eta=x", "eta=inf"):
        with pytest.raises(typer.BadParameter, match="expected NAME=NUMBER"):
            number_pair(text, "-o")


def test_every_field_of_the_round_policy_has_an_option() -> None:
    assert {field.name for field in msgspec.structs.fields(RoundPolicy)} == FIELDS.keys()
    for command in (start, clone):
        assert FIELDS.keys() <= inspect.signature(command).parameters.keys()
    assert len(parameters(changes=False)) == 1 + len(FIELDS)


def test_the_defaults_that_help_shows_are_those_of_a_run() -> None:
    defaults = msgspec.to_builtins(RunSettings())
    assert {
        name: f"{defaults[name]:g}" if name != "strategy" else defaults[name] for name in settings_options.DEFAULTS
    } == (settings_options.DEFAULTS)


@pytest.mark.parametrize("text", ["1_000", "\N{ARABIC-INDIC DIGIT THREE}", "\N{FULLWIDTH DIGIT THREE}"])
def test_digits_are_plain_ones(text: str) -> None:
    for read in (
        lambda: size(f"{text}MB"),
        lambda: budget([f"rounds={text}"]),
        lambda: budget([f"hours={text}"]),
        lambda: number_pair(f"mu={text}", "--option"),
        lambda: durations.seconds_of(f"{text}h", "--since"),
        lambda: invitations.seconds_of(f"{text}h", "--expires"),
        lambda: quotas.limit(text, "--devices"),
    ):
        with pytest.raises((ValueError, typer.BadParameter)):
            read()


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


def test_options_win_over_the_file(tmp_path: Path) -> None:
    toml, json = tmp_path / "policy.toml", tmp_path / "policy.json"
    toml.write_text('target = 9\nlate = "fold"\n[labels]\ncountry = "de"\n')
    json.write_text('{"target": 9, "quorum": 3}')
    given = {"target": 12, "labels": None, "quorum": None}
    assert policy_of(toml, given) == {"target": 12, "late": "fold", "labels": {"country": "de"}}
    assert policy_of(json, {"target": None}) == {"target": 9, "quorum": 3}
    labels = policy_of(toml, {"labels": ["country=fr", "kind=phone"]})["labels"]
    assert labels == {"country": "fr", "kind": "phone"}
    rules = policy_of(None, {"requires": ["min_battery=0.3", "charging=true", "hours=22-6"]})["requires"]
    assert rules == {"min_battery": 0.3, "charging": True, "hours": "22-6"}
    assert policy_of(None, {"target": None}) == {}


@pytest.mark.parametrize(
    ("options", "where", "sentence"),
    [
        ({"quorum": 0}, "--quorum", "quorum should be at least 1, got 0"),
        ({"over_selection": 0.5}, "--over-selection", "over selection should be at least 1, got 0.5"),
        ({"over_selection": 1e308}, "--over-selection", "over selection should be at most 100, got 1e+308"),
        ({"deadline": 1e308}, "--deadline", "deadline should be at most 31,536,000, got 1e+308"),
        ({"attempts": 10**30}, "--attempts", "attempts should be at most 1,000,000,000, got 10^30"),
        ({"labels": ["phone"]}, "--label", "expected NAME=VALUE, got 'phone'"),
        ({"requires": ["min_battery=2"]}, "--require", "min_battery is a share between 0 and 1, got 2.0"),
        ({"requires": ["charging=perhaps"]}, "--require", "Expected `bool`, got `str` - at `$.charging`"),
        ({"target": 2, "quorum": 3}, "the round policy", "target should be at least the quorum of 3, got 2"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_option(options: dict[str, Any], where: str, sentence: str) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        policy_of(None, options)
    assert (refused.value.param_hint, refused.value.message) == (where, sentence)


def test_a_rule_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(typer.BadParameter, match="there is no such rule; there are min_battery, charging"):
        policy_of(None, {"requires": ["battery=1"]})


def test_changes_are_checked_each_by_itself() -> None:
    # With which quorum a target goes together is known only with the run that is changed.
    assert policy_of(None, {"target": 2, "quorum": 3}, changes=True) == {"target": 2, "quorum": 3}
    with pytest.raises(typer.BadParameter, match="at least 1"):
        policy_of(None, {"quorum": 0}, changes=True)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.toml", "minimum = 3", "has no such field; it has target, fraction"),
        ("p.toml", 'target = "many"', "Expected `int`, got `str`"),
        ("p.toml", "target = ", "expected a round policy in TOML"),
        ("p.json", "[1]", "expected the fields of a round policy, got list"),
        ("p.json", "target = 3", "or JSON in a .json file"),
        ("p.toml", "deadline = inf", "deadline should be at most 31,536,000, got inf"),
    ],
)
def test_a_policy_file_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(typer.BadParameter) as refused:
        policy_of(tmp_path / name, {})
    assert str(tmp_path / name) in (refused.value.param_hint or "")
    assert sentence in refused.value.message


def test_a_policy_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(typer.BadParameter) as refused:
            policy_of(path, {})
        assert str(path) in (refused.value.param_hint or "")
