"""The server's signing keys in its state folder: the one that signs, the one that will, and the public halves of all before.

Which is which is said by one file that is replaced atomically, `signing-keys.json`; a folder whose key never changed has none.
A new key's file is written before it is named there, and private keys that are not needed any more are removed after.
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
"""Seconds for which the old key is accepted after the last signature with it: devices' clocks differ, messages travel."""


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`signing-keys.json`: the fingerprint of the key that is `signing`, until the newest does at Unix time `switches`."""

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
    """The keys in `folder`; safe to use from several threads. One process at a time may change them.

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
        """Every key since the first, as public ones."""
        return self._held.lineage

    @property
    def successions(self) -> tuple[Succession, ...]:
        """What proves the lineage to those who trust any of the keys."""
        kept = self._held.kept
        return kept.successions if kept is not None else ()

    @property
    def switches(self) -> float | None:
        """Unix time from which the newest key signs, while another one does."""
        held = self._held
        return held.kept.switches if held.kept is not None and _is_pending(held) else None

    def begin(self, overlap: float, now: float) -> None:
        """Make a new key, which signs `overlap` seconds from `now` on; with 0 at once, and no key before it is accepted any more.

        Raises UmbelError, changing nothing, while one is on its way already and there is an overlap.
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
        """Sign with the newest key from now on, if its time has come; returns whether it has.

        Removes the private keys that sign nothing any more, and what a process that was killed has left.
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
