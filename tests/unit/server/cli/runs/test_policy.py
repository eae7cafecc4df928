"""The round policy on the command line: every field has an option, and each is checked."""

import inspect
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from umbel_server.cli.runs.policy import FIELDS, parameters, policy_of
from umbel_server.cli.runs.start import clone, start
from umbel_server.rounds.policy import RoundPolicy


def test_every_field_of_the_round_policy_has_an_option() -> None:
    assert {field.name for field in msgspec.structs.fields(RoundPolicy)} == FIELDS.keys()
    for command in (start, clone):
        assert FIELDS.keys() <= inspect.signature(command).parameters.keys()
    assert len(parameters(changes=False)) == 1 + len(FIELDS)


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
    with pytest.raises(typer.BadParameter, match="unknown rule; the rules are min_battery, charging"):
        policy_of(None, {"requires": ["battery=1"]})


def test_changes_are_checked_each_by_itself() -> None:
    # With which quorum a target goes together is known only with the run that is changed.
    assert policy_of(None, {"target": 2, "quorum": 3}, changes=True) == {"target": 2, "quorum": 3}
    with pytest.raises(typer.BadParameter, match="at least 1"):
        policy_of(None, {"quorum": 0}, changes=True)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.toml", "minimum = 3", "unknown field of a round policy; the fields are target, fraction"),
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
