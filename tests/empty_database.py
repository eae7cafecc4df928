"""An empty SQLite database of the newest schema: migrated once a process, and copied for each test that wants one."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from umbel_server.storage.database import Database


def empty_database(path: Path) -> str:
    """Make an empty database at `path`, unless there is a file; returns its URL."""
    if not path.exists():
        path.write_bytes(_migrated())
    return f"sqlite:///{path}"


@cache
def _migrated() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "empty.sqlite"
        Database(f"sqlite:///{path}").close()
        return path.read_bytes()
