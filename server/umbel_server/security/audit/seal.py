"""The seal of the audit log: a small file, signed by the server, that says where the log ends. It shows missing entries."""

from pathlib import Path
from typing import Literal

import msgspec

from umbel import signing
from umbel.atomic import write_atomically
from umbel.errors import NOT_DECODED, SignatureError
from umbel_server.security.audit.chain import Head
from umbel_server.security.keyring import Keyring


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The signed content. Its `kind` keeps it apart from everything else that the server's key signs."""

    kind: Literal["audit-head"]
    count: int
    hash: str


class BadSeal(SignatureError):
    """The seal is missing, damaged, or not signed by this server."""


class Seal:
    """The seal in the file at `path`.

    It guards against someone who can change the database but not read the state folder: the folder holds the key.
    """

    def __init__(self, path: Path, keys: Keyring) -> None:
        self._path, self._keys = path, keys

    def exists(self) -> bool:
        """Whether the file exists."""
        return self._path.exists()

    @property
    def is_older(self) -> bool:
        """Whether an earlier key of the server signed the file, and not the current one."""
        try:
            token = self._path.read_bytes()
            signing.verify(token, self._keys.lineage.all)
        except (OSError, SignatureError):
            return False
        return signing.signer_of(token) != signing.fingerprint(self._keys.current)

    def write(self, head: Head) -> None:
        """Replace the file atomically: after a crash either the old or the new one is there."""
        sealed = msgspec.json.encode(_Sealed("audit-head", head.count, head.hash))
        write_atomically(self._path, signing.sign(sealed, self._keys.current), mode=0o600)

    def read(self) -> Head:
        """The end of the log by the file; raises BadSeal."""
        what = f"{self._path.name}, which says how far the audit log has come,"
        try:
            sealed = msgspec.json.decode(signing.verify(self._path.read_bytes(), self._keys.lineage.all), type=_Sealed)
        except OSError as error:
            raise BadSeal(f"{what} cannot be read ({error.strerror}); restore it from a backup") from error
        except (SignatureError, *NOT_DECODED) as error:
            raise BadSeal(f"{what} was changed: {error}") from error
        return Head(sealed.count, sealed.hash)
