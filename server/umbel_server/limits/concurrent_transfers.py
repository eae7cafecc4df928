"""The bound on a device's concurrent uploads and downloads: a transfer beyond it cancels the device's oldest one.

The device waits for its newest transfer. An older one may belong to a broken connection that the server still counts as
open; to refuse the new one would lock a device on a bad link out for minutes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from anyio import CancelScope


class Transfers:
    """The transfers in progress, at most `most` a device. Methods are for the event loop's thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: dict[tuple[str, str], list[CancelScope]] = {}

    @contextmanager
    def one(self, population: str, device: str) -> Iterator[CancelScope]:
        """The cancel scope of one transfer; newer transfers of the same device may cancel it."""
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
