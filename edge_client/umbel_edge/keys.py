"""Where a device's signing key is kept: in a file of its state folder, or on a token that does not give it out."""

import threading
from pathlib import Path
from typing import Literal, Protocol

import msgspec
from joserfc.jwk import ECKey

from umbel import signing
from umbel.errors import UmbelError

FILE = "key.pem"


class KeyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[key]` of the agent's configuration; `module` and what follows are a PKCS#11 token's alone."""

    store: Literal["file", "pkcs11"] = "file"
    module: Path | None = None
    token: str = ""
    name: str = "umbel"
    pin_file: Path | None = None
    pin_env: str = ""

    def check(self) -> None:
        """Raise UmbelError unless the keys of the table fit each other."""
        if self.store == "file":
            if self != KeyConfig():
                raise UmbelError('[key]: module, token, name, pin_file and pin_env are for store = "pkcs11"')
            return
        if self.module is None or not self.token or not self.name:
            raise UmbelError(
                '[key]: store = "pkcs11" needs the module (a library), and the labels of the token and of the key on it'
            )
        if (self.pin_file is None) == (not self.pin_env):
            raise UmbelError("[key]: say where the token's PIN is, with either pin_file or pin_env")

    def within(self, folder: Path) -> "KeyConfig":
        """The same, its paths made absolute."""
        module = folder / self.module if self.module is not None else None
        pin_file = folder / self.pin_file if self.pin_file is not None else None
        return msgspec.structs.replace(self, module=module, pin_file=pin_file)


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
    from umbel_edge.token_keys import TokenStore

    return TokenStore(config, stopping, patient)
