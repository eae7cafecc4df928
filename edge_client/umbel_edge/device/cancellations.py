"""The assignments that the server cancelled, remembered across restarts."""

from umbel_edge.device.database import StateDatabase


class Cancellations:
    """Assignment ids; asked for before every batch, so they are in memory too. Safe to use from several threads."""

    def __init__(self, database: StateDatabase) -> None:
        self._database = database
        self._assignments = {str(row[0]) for row in database.rows("SELECT assignment FROM cancelled")}

    def add(self, assignment: str, now: float) -> None:
        """Remember that an assignment is cancelled; `now` is Unix seconds."""
        self._database.write("INSERT OR REPLACE INTO cancelled VALUES (?, ?)", assignment, now)
        self._assignments.add(assignment)

    def __contains__(self, assignment: str) -> bool:
        return assignment in self._assignments

    def forget_before(self, time: float) -> None:
        """Drop those from before `time` (Unix seconds), so that the next process does not know them."""
        self._database.write("DELETE FROM cancelled WHERE at < ?", time)
