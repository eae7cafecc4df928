"""Plans on the device: fetched, verified, and the newest few kept."""

from collections.abc import Callable
from pathlib import Path

from umbel.errors import UmbelError
from umbel.messages import Blob
from umbel.plan import Plan
from umbel_edge.connection.resumable_downloads import Downloads
from umbel_edge.connection.server_keys import ServerKeys

PLANS_KEPT = 3


class PlanCache:
    """The plans in `folder`, by digest; the one used last stays open."""

    def __init__(self, folder: Path, downloads: Downloads, keys: ServerKeys) -> None:
        self._folder, self._downloads, self._keys = folder, downloads, keys
        self._plan: Plan | None = None

    def open(self, blob: Blob, check: Callable[[], None] | None = None) -> Plan:
        """The plan with this address, fetched when it is not here; see Downloads for `check`.

        Raises UmbelError when it cannot be fetched, is damaged, or is not signed by the server.
        """
        if self._plan is not None and self._plan.sha256 == blob.sha256:
            return self._plan
        path = self._downloads.fetch_file(blob, self._folder / f"{blob.sha256}.plan", check)
        try:
            plan = Plan.open(path)
            plan.verify(self._keys.known)
        except UmbelError:
            path.unlink(missing_ok=True)
            raise
        newest = sorted(self._folder.glob("*.plan"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in newest[PLANS_KEPT:]:
            old.unlink()
        self._plan = plan
        return plan
