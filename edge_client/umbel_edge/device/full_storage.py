"""Storage that is full: how it is recognised, and what is said of it."""

import errno
import sqlite3

FULL = "the device's storage is full; free some space there, then the command can be sent again"


def is_full(error: BaseException) -> bool:
    """Whether this is what writing to a file or to SQLite raises when there is no room."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
