"""The generated pages have every command, option, key, route and strategy, and the site's menu has every page."""

import re
import tomllib
from collections.abc import Iterator

import click
import typer.main

from docs.hooks import generated, pictures
from tests.unit.docs.pages import DOCS, ROOT, made, written
from umbel_edge.config import EXAMPLE
from umbel_server.api import openapi
from umbel_server.cli import make_app
from umbel_server.flower.strategies import STRATEGIES
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.state_folder import Config

PAGES = {page.path.relative_to(DOCS).as_posix(): page for page in made()}


def test_every_command_and_every_option_is_in_the_reference() -> None:
    page = PAGES["reference/umbel.md"].text
    root = typer.main.get_command(make_app())
    for path, command in _leaves(root, ("umbel",)):
        heading = re.search(rf"^#+ `{re.escape(' '.join(path))}`$(.*?)(?=^#+ `|\Z)", page, re.MULTILINE | re.DOTALL)
        assert heading is not None, path
        for option in command.params:
            if isinstance(option, click.Option) and option.name != "help":
                assert f"`{option.opts[0]}`" in heading[1], (path, option.opts)
    assert "[dim]" not in page
    assert "\\[default" not in page


def _leaves(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _leaves(child, (*path, name))
    else:
        yield path, command


def test_every_key_and_every_field_is_in_the_reference() -> None:
    server = PAGES["reference/umbel-toml.md"].text
    for name in Config.__struct_fields__:
        assert f"`{name}`" in server or f"`[{name}]`" in server or f"`[{name}.NAME]`" in server, name
    assert not re.search(r"^\| `\w+` \|  \|", server, re.MULTILINE), "a key of umbel.toml is not explained"
    policy = PAGES["reference/round-policy.md"].text
    assert [name for name in RoundPolicy.__struct_fields__ if f"| `{name}` |" not in policy] == []
    (block,) = PAGES["reference/agent-toml.md"].blocks("toml")
    assert tomllib.loads(block.text) == tomllib.loads(EXAMPLE)
    strategies = PAGES["reference/strategies.md"].text
    assert [name for name in STRATEGIES if f"| `{name}` |" not in strategies] == []


def test_every_route_is_in_the_reference_with_its_role_and_its_answer() -> None:
    page = PAGES["reference/api.md"].text
    for path, operations in openapi()["paths"].items():
        for method in operations:
            assert f"### `{method.upper()} {path}`\n" in page
    assert page.count("### `") == page.count("\nNeeds ")


def test_every_page_of_the_site_is_in_its_menu() -> None:
    menu = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    pages = {page.path.relative_to(DOCS).as_posix() for page in written() if page.path.is_relative_to(DOCS)}
    assert menu == pages | PAGES.keys()


def test_a_copied_page_has_links_that_hold_in_the_site() -> None:
    made = generated.moved("[a](docs/how-to/task.md#x) [b](CHANGELOG.md) [c](server/x.py) [d](https://e.org)", "a/b.md")
    assert made == "[a](../how-to/task.md#x) [b](../changelog.md) `c` [d](https://e.org)"


def test_the_dark_pictures_are_the_light_ones_in_other_colours() -> None:
    lights = sorted(pictures.FOLDER.glob(f"*{pictures.LIGHT}"))
    assert lights
    for light in lights:
        dark = light.with_name(light.name.removesuffix(pictures.LIGHT) + pictures.DARK)
        assert dark.read_text() == pictures.darkened(light.read_text()), (
            f"run python -m docs.hooks.pictures: {dark.name}"
        )
