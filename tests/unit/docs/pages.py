"""The pages of the documentation, and their parts: code blocks, headings, links, code within sentences."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from docs.hooks import generated

ROOT = Path(__file__).parent.parent.parent.parent
DOCS = ROOT / "docs"
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """A code block: where it begins, its language, its title, and its text."""

    place: str
    language: str
    title: str
    text: str


@dataclass(frozen=True)
class Page:
    """A page in Markdown; `path` is where readers of the repository find it, or where the site will have it."""

    path: Path
    text: str

    @cached_property
    def _tokens(self) -> list[Token]:
        return MarkdownIt("commonmark").enable("table").parse(self.text)

    @property
    def name(self) -> str:
        """The path within the repository."""
        return self.path.relative_to(ROOT).as_posix()

    def blocks(self, *languages: str) -> Iterator[Block]:
        """The code blocks in these languages."""
        for token in self._tokens:
            language, _, rest = token.info.partition(" ")
            if token.type == "fence" and language in languages:
                title = _TITLE.search(rest)
                line = token.map[0] + 1 if token.map else 0
                yield Block(f"{self.name}:{line}", language, title[1] if title else "", token.content)

    def spans(self) -> Iterator[str]:
        """The code within sentences."""
        for token in self._inline():
            if token.type == "code_inline":
                yield token.content

    def links(self) -> Iterator[str]:
        """The targets of links and pictures."""
        for token in self._inline():
            target = token.attrGet("href") or token.attrGet("src")
            if target is not None:
                yield str(target)
        for token in self._tokens:
            if token.type == "html_block":
                yield from re.findall(r'(?:href|src|srcset)="([^"]+)"', token.content)

    def anchors(self) -> set[str]:
        """The anchors of the headings, as the site makes them."""
        headings = zip(self._tokens, self._tokens[1:], strict=False)
        return {_slug(content.content) for opening, content in headings if opening.type == "heading_open"}

    def _inline(self) -> Iterator[Token]:
        for token in self._tokens:
            yield from token.children or ()


@cache
def written() -> tuple[Page, ...]:
    """The pages that are in the repository: those of the site, and those at its top."""
    paths = [*sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("*.md"))]
    return tuple(Page(path, path.read_text()) for path in paths)


@cache
def made() -> tuple[Page, ...]:
    """The pages that are made when the site is built."""
    return tuple(Page(DOCS / path, text) for path, text in generated.pages(ROOT).items())


def _slug(heading: str) -> str:
    """As Python-Markdown's table of contents makes an anchor."""
    plain = unicodedata.normalize("NFKD", heading.replace("`", "")).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
