"""The dark form of each picture: the light one with other colours. `python -m docs.hooks.pictures` writes the files."""

import re
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "images"
LIGHT, DARK = "-light.svg", "-dark.svg"
COLOURS = {
    "#ffffff": "#161b22",  # the paper
    "#f6f8fb": "#1c2430",  # a panel
    "#d5dbe5": "#38424f",  # a panel's edge
    "#1f2733": "#e6ebf2",  # words
    "#5b6778": "#9aa7b8",  # small words
    "#8592a5": "#738296",  # arrows
    "#e3f1ec": "#17382f",  # the server's parts
    "#2f8f6f": "#4fc39b",
    "#e6edfb": "#1a2d4d",  # the device's parts
    "#3867c8": "#7ba6f5",
    "#fbf0dc": "#40311a",  # people
    "#b47a1d": "#e0ad5c",
    "#fbe7e6": "#442322",  # what went wrong
    "#c0473f": "#ee8a83",
}
"""Light colours and the dark ones in their place."""

_IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<path>[^)\s]+)-light\.svg\)")


def darkened(svg: str) -> str:
    """A light picture in dark colours; raises KeyError on a colour that has no dark one."""
    return re.sub(r"#[0-9a-f]{6}\b", lambda match: COLOURS[match[0]], svg)


def themed(markdown: str) -> str:
    """A page on which each light picture is followed by its dark one; the theme shows one of them."""
    return _IMAGE.sub(r"![\g<alt>](\g<path>-light.svg#only-light)![\g<alt>](\g<path>-dark.svg#only-dark)", markdown)


def main() -> None:
    """Write the dark pictures beside the light ones."""
    for light in sorted(FOLDER.glob(f"*{LIGHT}")):
        dark = light.with_name(light.name.removesuffix(LIGHT) + DARK)
        dark.write_text(darkened(light.read_text()))


if __name__ == "__main__":
    main()
