"""The uploads that have begun, and the outcomes whose update is not uploaded yet."""

from umbel_edge.device.database import StateDatabase


class UploadRecords:
    """Begun uploads by the blob's SHA-256 in hex, and encoded outcomes by the command that they answer."""

    def __init__(self, database: StateDatabase) -> None:
        self._database = database

    def begin(self, sha256: str, now: float) -> bool:
        """Remember that a blob's upload has begun; returns whether it had begun before."""
        return not self._database.write("INSERT OR IGNORE INTO uploads VALUES (?, ?)", sha256, now)

    def end(self, sha256: str) -> None:
        """Forget an upload."""
        self._database.write("DELETE FROM uploads WHERE sha256 = ?", sha256)

    def forget_before(self, time: float) -> None:
        """Forget the uploads that began before `time` (Unix seconds)."""
        self._database.write("DELETE FROM uploads WHERE begun < ?", time)

    def keep_outcome(self, command: str, outcome: bytes) -> None:
        """Remember a command's encoded outcome until its update is uploaded."""
        self._database.write("INSERT OR REPLACE INTO outgoing VALUES (?, ?)", command, outcome)

    def outcome_of(self, command: str) -> bytes | None:
        """The outcome that was kept for a command."""
        row = self._database.row("SELECT outcome FROM outgoing WHERE command = ?", command)
        return bytes(row[0]) if row else None

    def commands(self) -> list[str]:
        """The commands for which an outcome is kept."""
        return [str(row[0]) for row in self._database.rows("SELECT command FROM outgoing")]

    def drop_outcome(self, command: str) -> None:
        """Forget a command's kept outcome."""
        self._database.write("DELETE FROM outgoing WHERE command = ?", command)
