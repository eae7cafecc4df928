"""Text from elsewhere made safe for a terminal and a log: one line, without control characters."""


def printable(text: str) -> str:
    """The text with each unprintable character replaced by its escape sequence, such as \\n for a line feed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
