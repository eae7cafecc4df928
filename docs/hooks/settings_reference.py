"""The reference of `umbel.toml`, of the round policy and of the strategies, from the structs that read them."""

import json
from typing import Any

import msgspec

from docs.hooks.markdown import COMMENT, code, table
from umbel_server.cli.runs.policy import FIELDS
from umbel_server.flower.strategies import RANGES, STRATEGIES, options_of
from umbel_server.rounds import bounds
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.state_folder import Config


def server_page() -> str:
    """The page of `umbel.toml`, in Markdown."""
    tables = msgspec.json.schema(Config)["$defs"]
    lines = [
        COMMENT,
        "# `umbel.toml`",
        "",
        "`umbel init` writes this file into the state folder, with every key at its default. The server reads it when it "
        "starts. An unknown key is an error.",
        "",
    ]
    lines += _keys("", tables["Config"], tables)
    for name, field in tables["Config"]["properties"].items():
        inner = field.get("additionalProperties", field)
        if "$ref" in inner:
            title = f"[{name}.NAME]" if inner is not field else f"[{name}]"
            lines += _keys(title, tables[inner["$ref"].rpartition("/")[2]], tables)
    return "\n".join(lines)


def policy_page() -> str:
    """The page of the round policy, in Markdown."""
    defaults = msgspec.to_builtins(RoundPolicy())
    panels = list(dict.fromkeys(panel for panel, _ in FIELDS.values()))
    lines = [
        COMMENT,
        "# Round policy",
        "",
        "These are the fields of a round policy. On the command line a field is an option: `over_selection` is "
        "`--over-selection`. `--policy FILE` reads all fields from a TOML or JSON file. "
        "[Set the round policy](../how-to/round-policy.md) explains when to change which.",
        "",
    ]
    for panel in panels:
        rows = [
            (code(name), help, _range(name), code(_text(defaults[name])))
            for name, (of, help) in FIELDS.items()
            if of == panel
        ]
        lines += [f"## {panel.rpartition(': ')[2].capitalize()}", ""]
        lines += table(("field", "meaning", "range", "default"), rows)
    return "\n".join(lines)


def strategies_page() -> str:
    """The page of the strategies, in Markdown."""
    rows = [
        (
            code(name),
            kind.__name__,
            "; ".join(f"{code(option)}: {RANGES[option]}" for option in options_of(name)) or "none",
        )
        for name, kind in STRATEGIES.items()
    ]
    return "\n".join(
        [
            COMMENT,
            "# Strategies",
            "",
            "`umbel runs start --strategy NAME` and `umbel simulate --strategy NAME` take these names. "
            "`--option NAME=NUMBER` sets an option. [Choose a strategy](../how-to/strategy.md) says which to take.",
            "",
            *table(("name", "Flower's class", "options"), rows),
        ]
    )


def _keys(title: str, schema: dict[str, Any], tables: dict[str, Any]) -> list[str]:
    lines = [f"## `{title}`", "", schema["description"], ""] if title else []
    rows = []
    for name, field in schema["properties"].items():
        if "$ref" in field or "$ref" in field.get("additionalProperties", {}):
            continue
        rows.append((code(name), field.get("description", ""), _kind(field), code(json.dumps(field.get("default")))))
    return lines + table(("key", "meaning", "type", "default"), rows)


def _kind(field: dict[str, Any]) -> str:
    kind = field.get("type", "")
    if kind == "array":
        return f"list of {field['items']['type']}s"
    least, most = field.get("minimum", field.get("exclusiveMinimum")), field.get("maximum")
    if least is None or most is None:
        return str(kind)
    return f"{kind}, {'above ' if 'exclusiveMinimum' in field else ''}{least:,.15g} to {most:,.15g}"


def _range(name: str) -> str:
    if name not in bounds.POLICY:
        return ""
    least, most, above = bounds.POLICY[name]
    return f"{'above ' if above else ''}{least:,.15g} to {most:,.15g}"


def _text(value: object) -> str:
    return "" if value == {} else f"{value:g}" if isinstance(value, float) else str(value)
