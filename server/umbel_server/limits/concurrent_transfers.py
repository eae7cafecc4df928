"""How many blobs a device sends and fetches at a time: with one too many the oldest ends.

The newest is the one that its device waits for; an older one may be of a connection that broke without the server's
knowing, and refusing the new one for its sake would keep a device with a bad link out for minutes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from anyio import CancelScope


class Transfers:
    """The transfers under way; for the event loop's thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: dict[tuple[str, str], list[CancelScope]] = {}

    @contextmanager
    def one(self, population: str, device: str) -> Iterator[CancelScope]:
        """The scope of one transfer, which is cancelled for the sake of newer ones."""
        scopes = self._of.setdefault((population, device), [])
        for oldest in scopes[: max(0, len(scopes) + 1 - self._most)]:
            scopes.remove(oldest)
            oldest.cancel()
        with CancelScope() as scope:
            scopes.append(scope)
            try:
                yield scope
            finally:
                if scope in scopes:
                    scopes.remove(scope)
                if not scopes:
                    self._of.pop((population, device), None)
