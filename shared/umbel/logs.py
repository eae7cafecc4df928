"""The log of a program that runs for long: the server's and the agent's lines look alike."""

import logging
import sys
from pathlib import Path
from types import TracebackType

from umbel.printable import printable


def set_up_logging(file: Path | None, verbose: bool) -> None:
    """Log lines with time and level to `file`, or to standard error; `verbose` adds DEBUG to INFO.

    Handlers that a library has set before are removed. Raises OSError when `file` cannot be written.
    """
    handler = logging.FileHandler(file) if file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)


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
