"""The code on the pages: Python compiles and names what exists, shell calls commands that exist, TOML is configuration."""

import ast
import configparser
import dataclasses
import importlib
import inspect
import json
import re
import runpy
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import typer.main

from tests.unit.docs.pages import ROOT, Block, written
from tests.unit.docs.shell import commands
from umbel import Task
from umbel_edge.cli import enrol
from umbel_edge.cli import make_parser as agent_parser
from umbel_edge.config import EXAMPLE, load_config
from umbel_server.cli import make_app
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.state_folder import Config
from umbel_sim.python_api import OWN, POLICY, simulate

OTHERS = frozenset(
    ". apt cat cd cp echo export flower-superlink flower-supernode flwr jobs kill mkdir mosquitto pkg proot-distro python3 rsync "
    "sed sleep sqlite3 sudo".split()
)
"""Programs beside Umbel's, make, pip and Python that the pages call."""
HEAVY = ("keras", "umbel_sim")
"""What a block imports that is only checked: running it takes seconds."""


def blocks(*languages: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for page in written() for block in page.blocks(*languages)]


@cache
def umbel() -> click.Command:
    return typer.main.get_command(make_app())


def leaf(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words after `umbel` name, and its arguments."""
    command = umbel()
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command {' '.join(words)}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("block", blocks("bash", "sh"))
def test_shell_calls_commands_that_exist(block: Block) -> None:
    for words in commands(block.text):
        check_command(words, block)


def check_command(words: list[str], block: Block) -> None:
    program, arguments = words[0], words[1:]
    match program:
        case "umbel":
            command, rest = leaf(arguments)
            command.make_context(" ".join(words[: len(words) - len(rest)]), list(rest))
        case "umbel-agent":
            if arguments[:1] == ["enrol"]:
                enrol.options_of(arguments[1:])
            else:
                agent_parser().parse_args(arguments)
        case "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert next(word for word in arguments if "=" not in word) in targets, words
        case "pip":
            (extras,) = re.findall(r"umbel(?:-edge$|\[([a-z0-9,]+)\])", arguments[-1])
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set(filter(None, extras.split(","))) <= known.keys()
        case "python":
            if arguments[0] == "-c":
                ast.parse(re.sub(r"\$\{?\w+\}?", "1", arguments[1]))
            else:
                page = next(page for page in written() if block.place.startswith(f"{page.name}:"))
                titles = [one.title for one in page.blocks("python")]
                assert arguments[0] in titles or (ROOT / arguments[0]).is_file(), words
        case _:
            assert program in OTHERS, (
                f"{block.place}: {program} is neither Umbel's nor a program that the pages may call"
            )


def options_of(command: click.Command) -> Iterator[str]:
    for option in command.params:
        yield from (*option.opts, *option.secondary_opts)
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from options_of(child)


def agent_options() -> Iterator[str]:
    for parser in (agent_parser(), enrol.make_parser()):
        yield from re.findall(r"(?<!\S)--?[a-z][a-z-]*", parser.format_help())


@pytest.mark.parametrize("page", written(), ids=lambda page: page.name)
def test_commands_and_options_within_sentences_exist(page: Any) -> None:
    known = {*options_of(umbel()), *agent_options(), "--help", "--debug", "--extra", "--cnn"}
    if page.name == "CHANGELOG.md":
        return  # it names what there was
    for span in page.spans():
        words = re.split(r"[\s=]+", span)
        if words[0] == "umbel" and len(words) > 1:
            command, rest = leaf([word.partition("|")[0] for word in words[1:]])
            names = {*options_of(command), "--help", "--debug"}
            assert {word for word in rest if word.startswith("-")} <= names, f"{page.name}: {span}"
        elif words[0].startswith("--"):
            assert words[0] in known, f"{page.name}: {span} is no option"
        elif words[0] == "make" and len(words) > 1:
            assert re.search(rf"^{re.escape(words[1])}:", (ROOT / "Makefile").read_text(), re.MULTILINE), span


@pytest.mark.parametrize("block", blocks("toml"))
def test_toml_is_configuration(block: Block, tmp_path: Path) -> None:
    table = tomllib.loads(block.text)
    match block.title:
        case "umbel.toml":
            msgspec.convert(table, Config)
        case "agent.toml":
            whole = tomllib.loads(EXAMPLE)
            for name, value in table.items():
                whole[name] = {**whole.get(name, {}), **value} if isinstance(value, dict) else value
            import tomli_w

            (tmp_path / "agent.toml").write_text(tomli_w.dumps(whole))
            load_config(tmp_path / "agent.toml")
        case "policy.toml":
            msgspec.convert(table, RoundPolicy)
        case title:
            pytest.fail(f"{block.place}: a block of TOML says in its title which file it is, got {title!r}")


@pytest.mark.parametrize("block", blocks("json"))
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", blocks("ini"))
def test_units_of_services_call_commands_that_exist(block: Block) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(block.text)
    program, *arguments = unit["Service"]["ExecStart"].split()
    check_command([Path(program).name, *arguments], block)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_compiles_and_names_what_exists(block: Block) -> None:
    tree = ast.parse(block.text)
    compile(tree, block.place, "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("umbel"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), block.place
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            given = {keyword.arg for keyword in node.keywords}
            if node.func.id == "Task":
                assert given <= {field.name for field in dataclasses.fields(Task)}
            elif node.func.id == "simulate":
                assert given <= {*OWN, *POLICY, *inspect.signature(simulate).parameters}


@pytest.mark.parametrize("block", blocks("python"))
def test_python_that_needs_no_keras_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = {name.partition(".")[0] for name in _modules(block.text)}
    if imported & set(HEAVY):
        assert "keras" in imported or "simulate" in block.text or "umbel_sim.digits" in block.text
        return
    for folder in re.findall(r'"([\w.-]+)/', block.text):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.py").write_text(block.text)
    runpy.run_path("block.py")


def _modules(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
