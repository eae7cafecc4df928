"""The server's signing keys in its state folder: the current key, the next one, and the public halves of earlier ones.

The file `signing-keys.json` says which key has which part. It is replaced atomically, and missing while the first key
was never rotated. A new key's file is written before that file names it; private keys that nothing needs are removed
after.
"""

import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec
from joserfc.jwk import ECKey

from umbel import signing, succession
from umbel.atomic import write_atomically
from umbel.enrolment import CLOCK_TOLERANCE
from umbel.errors import NOT_DECODED, SignatureError, UmbelError
from umbel.signing import PublicKey
from umbel.succession import Lineage, Succession, Successions
from umbel_server import moments

KEY, KEYS = "signing-key.pem", "signing-keys.json"
SCHEMA = 1
GRACE = 2 * CLOCK_TOLERANCE
"""Seconds for which the old key is accepted after its last signature: clocks differ, and messages take time."""


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`signing-keys.json`: `signing` is the fingerprint of the current key; the newest signs from Unix time `switches` on."""

    schema: int
    first: PublicKey
    successions: Successions
    signing: str
    switches: float


_KEPT = msgspec.json.Decoder(_Kept)


@dataclass(frozen=True)
class _Held:
    kept: _Kept | None
    lineage: Lineage
    current: ECKey


class Keyring:
    """The keys in `folder`. Safe to use from several threads; only one process at a time may change them.

    Raises UmbelError when a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._turn = folder, threading.Lock()
        self._held = self._read()

    @property
    def current(self) -> ECKey:
        """The private key that signs now."""
        return self._held.current

    @property
    def lineage(self) -> Lineage:
        """The public halves of all keys, oldest first."""
        return self._held.lineage

    @property
    def successions(self) -> tuple[Succession, ...]:
        """The signed statements that prove the lineage to anyone who trusts one of its keys."""
        kept = self._held.kept
        return kept.successions if kept is not None else ()

    @property
    def switches(self) -> float | None:
        """Unix time from which the newest key signs; None when it signs already."""
        held = self._held
        return held.kept.switches if held.kept is not None and _is_pending(held) else None

    def begin(self, overlap: float, now: float) -> None:
        """Make a new key that signs from `now` + `overlap` on. With 0 it signs at once, and earlier keys are rejected.

        Raises UmbelError and changes nothing when `overlap` is not 0 and another new key does not sign yet.
        """
        with self._turn:
            held = self._held
            if overlap and _is_pending(held):
                raise UmbelError(
                    "a new key is announced already, and signs soon; wait for that, or rotate at once with --now"
                )
            if len(self.successions) >= succession.MOST:
                raise UmbelError(f"a server has at most {succession.MOST + 1} signing keys; set up a new one")
            newest = signing.fingerprint(held.lineage.newest)
            old = self._private(newest, self._first(held))
            new = signing.generate_key()
            fingerprint = signing.fingerprint(new)
            write_atomically(self._path(fingerprint, ""), new.as_pem(private=True), mode=0o600)
            moments.reached("key made")
            retires = now + overlap + GRACE if overlap else now
            kept = _Kept(
                SCHEMA,
                signing.public_key(held.lineage.keys[0]),
                (*self.successions, succession.succeed(old, new, now, retires)),
                signing.fingerprint(held.current) if overlap else fingerprint,
                now + overlap,
            )
            self._write(kept)
            moments.reached("key endorsed")
            self._tidy()

    def advance(self, now: float) -> bool:
        """Switch to the newest key if its time has come; returns whether it did.

        Removes private keys that sign no more, and files that a killed process left.
        """
        with self._turn:
            held, switched = self._held, False
            if held.kept is not None and _is_pending(held) and now >= held.kept.switches:
                newest = signing.fingerprint(held.lineage.newest)
                self._write(msgspec.structs.replace(held.kept, signing=newest))
                moments.reached("key switched")
                switched = True
            self._tidy()
        return switched

    def _write(self, kept: _Kept) -> None:
        write_atomically(self._folder / KEYS, msgspec.json.encode(kept), mode=0o600)
        self._held = self._read()

    def _tidy(self) -> None:
        held = self._held
        first = self._first(held)
        needed = {self._path(signing.fingerprint(key), first) for key in (held.current, held.lineage.newest)}
        for path in self._folder.glob("signing-key*.pem"):
            if path not in needed:
                path.unlink()

    def _read(self) -> _Held:
        path = self._folder / KEYS
        if not path.exists():
            key = self._load(self._folder / KEY)
            return _Held(None, succession.lineage(signing.public_key(key), ()), key)
        try:
            kept = _KEPT.decode(path.read_bytes())
            lineage = succession.lineage(kept.first, kept.successions)
        except (OSError, SignatureError, *NOT_DECODED) as error:
            raise UmbelError(
                f"{path}: expected the server's signing keys ({error}); restore it from a backup"
            ) from error
        if kept.schema > SCHEMA:
            raise UmbelError(f"{path}: made by a newer Umbel (schema {kept.schema}, this one reads {SCHEMA}); upgrade")
        first = signing.fingerprint(lineage.keys[0])
        self._private(signing.fingerprint(lineage.newest), first)
        return _Held(kept, lineage, self._private(kept.signing, first))

    def _private(self, fingerprint: str, first: str) -> ECKey:
        path = self._path(fingerprint, first)
        key = self._load(path)
        if signing.fingerprint(key) != fingerprint:
            raise UmbelError(f"{path}: expected the signing key {fingerprint[:8]}; restore it from a backup")
        return key

    def _load(self, path: Path) -> ECKey:
        if not path.is_file():
            raise UmbelError(f"{self._folder}: {path.name} is missing; restore it from a backup or make a new folder")
        return signing.load_or_create_key(path)

    def _path(self, fingerprint: str, first: str) -> Path:
        return self._folder / (KEY if fingerprint == first else f"signing-key-{fingerprint}.pem")

    @staticmethod
    def _first(held: _Held) -> str:
        return signing.fingerprint(held.lineage.keys[0])


def _is_pending(held: _Held) -> bool:
    return signing.fingerprint(held.current) != signing.fingerprint(held.lineage.newest)
