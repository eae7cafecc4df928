"""How one signing key of the server follows another: each vouches for the other, so who trusts one of them trusts all.

A chain of successions survives any number of rotations that a device has missed. Old keys go on to verify what was signed
with them and is named, by digest, in a command by a key that is still accepted: plans and the manifests of releases.
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
"""What a succession is signed as."""
MOST = 256
"""Successions in a chain."""
MOST_TOKEN = 2048


class Successor(Struct, frozen=True, forbid_unknown_fields=True):
    """What is signed of a succession, and nothing else that the server's key has signed reads like it.

    `new` was made `at`, after `old`; from `retires` on no key before `new` is accepted. Both are Unix seconds.
    """

    kind: Literal["signing-key"]
    old: PublicKey
    new: PublicKey
    at: float
    retires: float


class Succession(Struct, frozen=True):
    """The same Successor in two compact JWS: by the old key, which names its heir, and by the new one, its forebear."""

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
        """By fingerprint, the keys that may sign what arrives at Unix time `now`."""
        return {name: key for (name, key), until in zip(self.all.items(), self.until, strict=True) if now < until}


def succeed(old: ECKey, new: ECKey, at: float, retires: float) -> Succession:
    """`old` names `new` as what follows it, `new` names `old` as what it follows."""
    payload = msgspec.json.encode(
        Successor("signing-key", signing.public_key(old), signing.public_key(new), at, retires)
    )
    return Succession(signing.sign_as(KIND, payload, old).decode(), signing.sign_as(KIND, payload, new).decode())


def read(succession: Succession) -> Successor:
    """What both keys have signed; raises SignatureError unless both have signed the same."""
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
    """The keys that who trusts `root` may trust; raises SignatureError unless they are one chain that `root` is in."""
    links = [read(succession) for succession in successions]
    keys = [link.old for link in links[:1]] or [root]
    for link in links:
        if link.old != keys[-1] or link.new in keys:
            raise SignatureError("expected signing keys that follow each other, one of them follows another key")
        keys.append(link.new)
    if root not in keys:
        raise SignatureError("the signing keys do not go back to the one that is trusted here")
    until = [math.inf] * len(keys)
    for i in range(len(links) - 1, -1, -1):
        until[i] = min(until[i + 1], links[i].retires)
    return Lineage(tuple(map(signing.import_public, keys)), tuple(until), (0.0, *(link.at for link in links)))
