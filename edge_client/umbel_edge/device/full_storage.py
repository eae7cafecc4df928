"""Recognising that the device's storage is full, for every module that writes files."""

import errno
import sqlite3

FULL = "the device's storage is full; free some space there, then the command can be sent again"


def is_full(error: BaseException) -> bool:
    """Whether a file or SQLite raised this error because the storage is full."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
