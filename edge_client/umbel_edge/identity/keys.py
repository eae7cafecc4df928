"""Where a device's signing key is kept: in a file of its state folder, or on a token that does not give it out."""

import threading
from pathlib import Path
from typing import Protocol

from joserfc.jwk import ECKey

from umbel import signing
from umbel_edge.config import KeyConfig

FILE = "key.pem"


class KeyStore(Protocol):
    """Keeps one EC P-256 key, with which this device signs; `where` says in which place, for people.

    Every method, and signing with the key, raises UmbelError when the place cannot be used.
    """

    where: str

    def load(self) -> ECKey | None:
        """The key, or None while there is none."""

    def create(self) -> ECKey:
        """Make the key, where there is none."""

    def close(self) -> None:
        """Let go of the place; the key signs no more."""


class FileStore:
    """A PEM file with mode 0600 in the folder of the agent's state."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self.where = str(self._path)

    def load(self) -> ECKey | None:
        """The key in the file."""
        return signing.load_or_create_key(self._path) if self._path.exists() else None

    def create(self) -> ECKey:
        """Write a new key."""
        return signing.load_or_create_key(self._path)

    def close(self) -> None:
        """A file needs none."""


def store_of(config: KeyConfig, folder: Path, stopping: threading.Event, patient: bool = True) -> KeyStore:
    """The store that is configured, for the state in `folder`.

    When a token is away, whoever needs it waits until it is back or `stopping` is set; without `patient` that is an error.
    """
    if config.store == "file":
        return FileStore(folder)
    from umbel_edge.identity.token_keys import TokenStore

    return TokenStore(config, stopping, patient)
