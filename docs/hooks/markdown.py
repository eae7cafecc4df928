"""Pieces of Markdown that the generated pages are made of."""

from collections.abc import Sequence

COMMENT = "<!-- This page is made when the site is built. Its words are in the program itself. -->"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table, or nothing without rows."""
    if not rows:
        return []
    lines = [columns, ["---"] * len(columns), *rows]
    return [*(f"| {' | '.join(cell(text) for text in line)} |" for line in lines), ""]


def cell(text: str) -> str:
    """Text that stays within its cell."""
    return " ".join(text.split()).replace("|", "\\|") if text != "---" else text


def code(text: str) -> str:
    """Text as code, nothing when there is none."""
    return f"`{text}`" if text else ""


def sentence(text: str) -> str:
    """Text with a capital letter at its beginning and a full stop at its end; a command's name keeps its case."""
    text = " ".join(text.split())
    return text if not text or text[-1] in ".!?:" else f"{text}."
