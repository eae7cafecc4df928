"""The round policy on the command line: one option a field, and --policy FILE for all of it."""

import json
import tomllib
from collections.abc import Mapping
from inspect import Parameter
from pathlib import Path
from typing import Any

import msgspec
import typer

from umbel.conditions import Rules
from umbel_server.cli.options import parameter
from umbel_server.cli.values import pair
from umbel_server.rounds.policy import RoundPolicy

ROUND, DEVICES, AGAIN, LATE, CHECKS = (
    "Round policy: how many devices",
    "Round policy: which devices",
    "Round policy: when a round fails",
    "Round policy: late updates, asynchronous runs",
    "Round policy: checks",
)
FIELDS: dict[str, tuple[str, str]] = {
    "target": (ROUND, "updates a round wants (0: by --fraction)"),
    "fraction": (ROUND, "share of the devices that can train, when there is no --target"),
    "over_selection": (ROUND, "offer X times as many assignments as updates are wanted"),
    "quorum": (ROUND, "fewest updates that a round needs at its deadline"),
    "deadline": (ROUND, "seconds a round may take"),
    "select": (DEVICES, "random, least-recent (longest without an assignment) or most-examples"),
    "labels": (DEVICES, "a label that a device must have; repeatable"),
    "requires": (DEVICES, "a rule for the device, such as min_battery=0.3; repeatable"),
    "minimum_gap": (DEVICES, "seconds a device rests after an assignment"),
    "attempts": (AGAIN, "abandoned attempts in a row after which the run pauses"),
    "backoff": (AGAIN, "seconds until the next attempt, twice as long each time"),
    "late": (LATE, "drop or fold: what happens to an update that comes after its round"),
    "staleness_exponent": (LATE, "multiply a stale update's weight by (1 + staleness)^-X"),
    "max_staleness": (LATE, "checkpoints after which an update is too old"),
    "mode": (LATE, "sync (in rounds) or async (devices train all the time)"),
    "buffer": (LATE, "async: updates that make a checkpoint"),
    "concurrency": (LATE, "async: devices that train at once"),
    "evaluate": (CHECKS, "devices that evaluate each checkpoint on their examples"),
    "max_norm": (CHECKS, "reject an update with a larger L2 norm; 0 lets any pass"),
    "norm_multiple": (CHECKS, "reject one with X times the round's median norm (0: any)"),
    "max_rejections": (CHECKS, "rejected updates that quarantine a device (0: never)"),
    "max_loss_growth": (CHECKS, "pause at X times the first held-out loss (0: only warn)"),
}
"""The panel and the help of each field's option, in the order of --help."""

FILE = "policy_file"
_PAIRS = {"labels": "--label", "requires": "--require"}
_METAVARS = {int: "N", float: "X"}


def parameters(changes: bool, defaults: RoundPolicy = RoundPolicy()) -> list[Parameter]:  # noqa: B008 (it is frozen)
    """The options as a command's parameters. As `changes` to another policy they show no defaults."""
    help = "read the policy from a TOML or JSON file; options win"
    made = [parameter(FILE, Path, help, ROUND, names=("--policy",), metavar="FILE")]
    fields = {field.name: field for field in msgspec.structs.fields(RoundPolicy)}
    for name, (panel, help) in FIELDS.items():
        kind, pairs = fields[name].type, name in _PAIRS
        made.append(
            parameter(
                name,
                list[str] if pairs else kind,
                help,
                panel,
                "" if changes or pairs or "(0:" in help else _text(getattr(defaults, name)),
                names=(_option(name),),
                metavar="NAME=VALUE" if pairs else _METAVARS.get(kind, "HOW"),
            )
        )
    return made


def policy_of(file: Path | None, options: Mapping[str, Any], changes: bool = False) -> dict[str, Any]:
    """The fields of a round policy from a file and from options (None: not given); options win.

    Each field is checked alone. Unless they are `changes`, the fields are checked together too. Raises BadParameter.
    """
    given = _read(file) if file is not None else {}
    for name, value in options.items():
        if value is not None:
            given[name] = _pairs(name, value) if name in _PAIRS else value
            _check({name: given[name]}, _option(name))
    if not changes:
        _check(given, "the round policy")
    return given


def _read(file: Path) -> dict[str, Any]:
    where = f"--policy {file}"
    try:
        text = file.read_text()
        fields = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise typer.BadParameter((error.strerror or str(error)).lower(), param_hint=where) from error
    except (ValueError, RecursionError) as error:
        sentence = f"expected a round policy in TOML, or JSON in a .json file: {error}"
        raise typer.BadParameter(sentence, param_hint=where) from error
    if not isinstance(fields, dict):
        sentence = f"expected the fields of a round policy, got {type(fields).__name__}"
        raise typer.BadParameter(sentence, param_hint=where)
    for name, value in fields.items():
        _check({name: value}, f"{where}, {name}")
    return fields


def _check(fields: Mapping[str, Any], where: str) -> None:
    try:
        msgspec.convert(fields, RoundPolicy)
    except msgspec.ValidationError as error:
        known = ", ".join(field.name for field in msgspec.structs.fields(RoundPolicy))
        sentence = (
            f"unknown field of a round policy; the fields are {known}" if "unknown field" in str(error) else str(error)
        )
        raise typer.BadParameter(sentence, param_hint=where) from error


def _pairs(name: str, texts: list[str]) -> dict[str, Any]:
    pairs = dict(pair(text, _option(name)) for text in texts)
    if name == "labels":
        return dict(pairs)
    try:
        return dict(msgspec.to_builtins(msgspec.convert(pairs, Rules, strict=False)))
    except msgspec.ValidationError as error:
        known = ", ".join(Rules.__struct_fields__)
        sentence = f"unknown rule; the rules are {known}" if "unknown field" in str(error) else str(error)
        raise typer.BadParameter(sentence, param_hint=_option(name)) from error


def _option(name: str) -> str:
    return _PAIRS.get(name, f"--{name.replace('_', '-')}")


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
