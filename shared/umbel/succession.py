"""Successions of the server's signing key: the old key and the new key each sign a statement that names the other.

A device that trusts one key can therefore trust all keys of the chain, however many rotations it has missed. A retired key
still verifies plans and manifests of releases that were signed with it. Such a file is accepted only when a command names
it by digest, and the command must be signed by a key that is not retired.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import msgspec
from joserfc.jwk import ECKey
from msgspec import Meta, Struct

from umbel import signing
from umbel.errors import NOT_DECODED, SignatureError
from umbel.signing import PublicKey

KIND = "succession"
"""The purpose in the JWS header of a signed succession (`signing.sign_as`)."""
MOST = 256
"""The most successions in a chain."""
MOST_TOKEN = 2048
"""The most characters of one of the two JWS of a succession."""


class Successor(Struct, frozen=True, forbid_unknown_fields=True):
    """The statement that both keys sign: `new` was made at the time `at` and follows `old`.

    From the time `retires` on, no key older than `new` is accepted. Both times are Unix seconds. `kind` and the refusal of
    unknown fields ensure that no other signed message of the server can be read as a Successor.
    """

    kind: Literal["signing-key"]
    old: PublicKey
    new: PublicKey
    at: float
    retires: float


class Succession(Struct, frozen=True):
    """One Successor in two compact JWS, one signed by the old key and one by the new key."""

    by_old: Annotated[str, Meta(max_length=MOST_TOKEN)]
    by_new: Annotated[str, Meta(max_length=MOST_TOKEN)]


Successions = Annotated[tuple[Succession, ...], Meta(max_length=MOST)]

# Made here, in one thread: msgspec 0.22 crashes when several threads decode nested structs for the first time at once.
_SUCCESSOR = msgspec.json.Decoder(Successor)


@dataclass(frozen=True)
class Lineage:
    """The server's signing keys, oldest first, each with the time until which devices accept it.

    Times are Unix seconds. The newest key has no end.
    """

    keys: tuple[ECKey, ...]
    until: tuple[float, ...]
    made: tuple[float, ...]
    """The time at which each key was made; 0 for the first key, whose time is unknown."""

    @property
    def newest(self) -> ECKey:
        """The newest key."""
        return self.keys[-1]

    @cached_property
    def all(self) -> Mapping[str, ECKey]:
        """Every key by its fingerprint, retired ones too."""
        return {signing.fingerprint(key): key for key in self.keys}

    def accepted(self, now: float) -> Mapping[str, ECKey]:
        """The keys, by fingerprint, whose signature is accepted at Unix time `now`."""
        return {name: key for (name, key), until in zip(self.all.items(), self.until, strict=True) if now < until}


def succeed(old: ECKey, new: ECKey, at: float, retires: float) -> Succession:
    """Make the succession from the key `old` to the key `new`, signed by both; times are Unix seconds (Successor)."""
    payload = msgspec.json.encode(
        Successor("signing-key", signing.public_key(old), signing.public_key(new), at, retires)
    )
    return Succession(signing.sign_as(KIND, payload, old).decode(), signing.sign_as(KIND, payload, new).decode())


def read(succession: Succession) -> Successor:
    """Verify a succession and return its statement; raises SignatureError unless both keys have signed the same one."""
    try:
        payload = signing.payload_unverified(succession.by_old.encode())
        successor = _SUCCESSOR.decode(payload)
    except NOT_DECODED as error:
        raise SignatureError(
            f"expected the succession of a signing key, got one that does not parse: {error}"
        ) from error
    signing.verify_as(KIND, succession.by_old.encode(), signing.import_public(successor.old))
    if signing.verify_as(KIND, succession.by_new.encode(), signing.import_public(successor.new)) != payload:
        raise SignatureError("expected the same succession from the old and the new signing key, they differ")
    return successor


def lineage(root: PublicKey, successions: Sequence[Succession]) -> Lineage:
    """The chain of keys in `successions`, verified; only `root` when there are none.

    Raises SignatureError when a signature does not verify, when the successions are not one chain, or when `root` is not
    in it.
    """
    links = [read(succession) for succession in successions]
    keys = [link.old for link in links[:1]] or [root]
    for link in links:
        if link.old != keys[-1] or link.new in keys:
            raise SignatureError("expected signing keys that follow each other, got one that follows another key")
        keys.append(link.new)
    if root not in keys:
        raise SignatureError("the signing keys do not go back to the one that is trusted here")
    until = [math.inf] * len(keys)
    for i in range(len(links) - 1, -1, -1):
        until[i] = min(until[i + 1], links[i].retires)
    return Lineage(tuple(map(signing.import_public, keys)), tuple(until), (0.0, *(link.at for link in links)))
