"""The server that the device trusts, in a file of its state folder."""

from pathlib import Path

import msgspec

from umbel.atomic import write_atomically
from umbel.enrolment import Trust, read_trust
from umbel.errors import NOT_DECODED, SignatureError, UmbelError
from umbel.signing import PublicKey

TRUST = "trust.json"
OLD_KEY = "server-key.json"


def load_trust(folder: Path) -> Trust | None:
    """The trust of the device with this state folder, None before it is enrolled; raises UmbelError on a damaged file.

    Another process may have the folder open.
    """
    path = folder / TRUST
    try:
        return read_trust(path.read_bytes())
    except FileNotFoundError:
        return _load_old_key(folder)
    except SignatureError as error:
        raise UmbelError(
            f"{path}: the file of the trusted server is damaged ({error}); enrol with a new state folder"
        ) from error


def save_trust(folder: Path, trust: Trust) -> None:
    """Trust this from now on."""
    write_atomically(folder / TRUST, msgspec.json.encode(trust), mode=0o600)


def _load_old_key(folder: Path) -> Trust | None:
    """The server's key as an older agent kept it, which knew no certificates."""
    try:
        key = msgspec.json.decode((folder / OLD_KEY).read_bytes(), type=PublicKey)
    except (FileNotFoundError, *NOT_DECODED):
        return None
    return Trust(key)
