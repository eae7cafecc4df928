"""Text from elsewhere, made fit for a terminal and a log: on one line, and with nothing that a terminal obeys."""

import logging
from types import TracebackType


def printable(text: str) -> str:
    """The text, with each character that is not printable as its escape: a line feed as \\n, an escape as \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class LogFormatter(logging.Formatter):
    """Lines with time and level. A message is one line whatever it names, and a traceback's lines are indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).splitlines())
