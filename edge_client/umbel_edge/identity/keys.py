"""Stores of the device's signing key: a file of the state folder, or a PKCS#11 token that never gives the key out."""

import threading
from pathlib import Path
from typing import Protocol

from joserfc.jwk import ECKey

from umbel import signing
from umbel_edge.config import KeyConfig

FILE = "key.pem"


class KeyStore(Protocol):
    """Keeps the EC P-256 key with which this device signs; `where` names the store in messages for people.

    Every method, and signing with the key, raises UmbelError when the store cannot be used.
    """

    where: str

    def load(self) -> ECKey | None:
        """The key, or None while there is none."""

    def create(self) -> ECKey:
        """Make a new key, when there is none."""

    def close(self) -> None:
        """Close the store; the key cannot sign any more."""


class FileStore:
    """A PEM file with mode 0600 in the folder of the agent's state."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self.where = str(self._path)

    def load(self) -> ECKey | None:
        """The key in the file, or None while there is no file."""
        return signing.load_or_create_key(self._path) if self._path.exists() else None

    def create(self) -> ECKey:
        """Write a new key."""
        return signing.load_or_create_key(self._path)

    def close(self) -> None:
        """Do nothing: a file needs no closing."""


def store_of(config: KeyConfig, folder: Path, stopping: threading.Event, patient: bool = True) -> KeyStore:
    """The configured store, for the state in `folder`.

    While a token is away, every use of it waits until it is back or `stopping` is set; with `patient` False it raises.
    """
    if config.store == "file":
        return FileStore(folder)
    from umbel_edge.identity.token_keys import TokenStore

    return TokenStore(config, stopping, patient)
