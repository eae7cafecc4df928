"""Text from elsewhere, made fit for a terminal and a log: on one line, and with nothing that a terminal obeys."""


def printable(text: str) -> str:
    """The text, with each character that is not printable as its escape: a line feed as \\n, an escape as \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
