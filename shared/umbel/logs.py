"""The log format that server and agent share."""

import logging
import sys
from pathlib import Path
from types import TracebackType

from umbel.printable import printable


def set_up_logging(file: Path | None, verbose: bool) -> None:
    """Write log lines with time and level to `file`, or to standard error; `verbose` includes DEBUG lines.

    Handlers that a library has installed before are removed. Raises OSError when `file` cannot be written.
    """
    handler = logging.FileHandler(file) if file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)


class LogFormatter(logging.Formatter):
    """Formats lines with time and level. Line breaks in a message are escaped, and lines of a traceback are indented."""

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
