"""The commands in a block of shell, as far as the documentation uses shell."""

import re
import shlex
from collections.abc import Iterator

_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
KEYWORDS = frozenset({"do", "then", "else"})


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command. Comments begin with ` #`; what stands in `$(...)` is a command, too."""
    text = re.sub(r"\\\n", " ", re.sub(r"(^|\s)#(?=\s|$).*$", "", text, flags=re.MULTILINE))
    while (start := text.find("$(")) >= 0:
        end = _closing(text, start + 2)
        if text[start + 2] != "(":  # else it is arithmetic
            yield from commands(text[start + 2 : end])
        text = f"{text[:start]}VALUE{text[end + 1 :]}"
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>()\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    for word in [*lexer, "\n"]:
        if word.strip(" ") and set(word) <= set("|&;\n"):
            yield from _command(words)
            words = []
        else:
            words.append(word)


def _closing(text: str, at: int) -> int:
    """Where the parenthesis that was opened before `at` is closed, outside of quotes."""
    depth, quote = 1, ""
    for place in range(at, len(text)):
        character = text[place]
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "()":
            depth += 1 if character == "(" else -1
            if not depth:
                return place
    raise ValueError(f"a parenthesis is not closed: {text}")


def _command(words: list[str]) -> Iterator[list[str]]:
    """The command among the words between two separators, without redirections, keywords and variables before it."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word in ("<", ">", ">>"):
            skip = not skip
        elif kept or not (word in KEYWORDS or _ASSIGNMENT.fullmatch(word)):
            kept.append(word)
    if kept and kept[0] not in ("for", "done"):
        yield kept
