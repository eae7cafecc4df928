"""How far the audit log has come, signed by the server's key in a small file: what is cut off its end is missed."""

from pathlib import Path
from typing import Literal

import msgspec

from umbel import signing
from umbel.atomic import write_atomically
from umbel.errors import NOT_DECODED, SignatureError
from umbel_server.security.audit.chain import Head
from umbel_server.security.keyring import Keyring


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is signed: nothing else that the server's key has signed reads like it."""

    kind: Literal["audit-head"]
    count: int
    hash: str


class BadSeal(SignatureError):
    """A seal that is missing, damaged or not the server's."""


class Seal:
    """The file at `path`. Whoever has the state folder has the key too: it guards against those who have the database alone."""

    def __init__(self, path: Path, keys: Keyring) -> None:
        self._path, self._keys = path, keys

    def exists(self) -> bool:
        """Whether there is a file."""
        return self._path.exists()

    @property
    def is_older(self) -> bool:
        """Whether the file was signed with a key of the server's before the one that signs now."""
        try:
            token = self._path.read_bytes()
            signing.verify(token, self._keys.lineage.all)
        except (OSError, SignatureError):
            return False
        return signing.signer_of(token) != signing.fingerprint(self._keys.current)

    def write(self, head: Head) -> None:
        """Replace the file; the old or the new one survives a crash."""
        sealed = msgspec.json.encode(_Sealed("audit-head", head.count, head.hash))
        write_atomically(self._path, signing.sign(sealed, self._keys.current), mode=0o600)

    def read(self) -> Head:
        """What the file says; raises BadSeal."""
        what = f"{self._path.name}, which says how far the audit log has come,"
        try:
            sealed = msgspec.json.decode(signing.verify(self._path.read_bytes(), self._keys.lineage.all), type=_Sealed)
        except OSError as error:
            raise BadSeal(f"{what} cannot be read ({error.strerror}); restore it from a backup") from error
        except (SignatureError, *NOT_DECODED) as error:
            raise BadSeal(f"{what} was changed: {error}") from error
        return Head(sealed.count, sealed.hash)
