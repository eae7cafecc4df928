"""Two devices with one identity, as after the copy of an SD card: they take the connection from each other without end.

Each process of an agent makes a key of its own to encrypt commands for (the status's `agreement`), so a key that another
one has followed never comes back. When it does, in a message newer than the last, two processes use one identity.
"""

import logging
from collections.abc import Callable

from umbel import signing
from umbel.messages import Status

log = logging.getLogger("umbel.devices")

KEPT_KEYS = 4
NAMED_SECONDS = 600.0
"""Two devices with one identity are named for this long after they were last seen."""
TWIN = (
    "two devices use this identity: its state folder or SD card was copied. Give one of them a new state folder and enrol it "
    "with a new invitation"
)


class Twins:
    """The identities that two devices use, by the statuses of this process's lifetime. Not safe to use from several threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._keys: dict[tuple[str, str], list[str]] = {}
        """The last keys of each device, the newest at the end."""
        self._newest: dict[tuple[str, str], int] = {}
        self._seen: dict[tuple[str, str], float] = {}

    def hear(self, status: Status) -> None:
        """Take in a status of a device that says it is online."""
        name = status.population, status.device
        if status.agreement is None or status.sequence <= self._newest.get(name, 0):
            return
        self._newest[name] = status.sequence
        key, keys = signing.fingerprint(signing.import_public(status.agreement)), self._keys.setdefault(name, [])
        if keys and key == keys[-1]:
            return
        if key in keys:
            if not self.named(*name):
                log.warning("%s/%s: %s", *name, TWIN)
            self._seen[name] = self._clock()
            keys.remove(key)
        keys.append(key)
        del keys[:-KEPT_KEYS]

    def named(self, population: str, device: str) -> bool:
        """Whether two devices used this identity lately."""
        seen = self._seen.get((population, device))
        return seen is not None and self._clock() - seen < NAMED_SECONDS
