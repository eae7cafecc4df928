"""Signed messages that only one receiver can read: a JWS inside a JWE (RFC 7516), by ECDH-ES and A256GCM (RFC 7518, 4.6).

Sign, then encrypt: the seal hides, and only the signature inside proves. The keys are never those that sign. A device makes
its own anew in every process and stores none, so commands recorded on the way are not opened with what it holds later.
"""

from functools import cache
from typing import TYPE_CHECKING

from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from umbel.errors import SignatureError

if TYPE_CHECKING:
    from joserfc.jwe import JWERegistry

_ALGORITHMS = ["ECDH-ES", "A256GCM"]
_MOST = 400_000
"""Characters of what is sealed: the largest signed message, and room."""


def is_sealed(token: bytes) -> bool:
    """Whether a message has the form of a sealed one (a compact JWE)."""
    return token.count(b".") == 4


def seal(token: bytes, key: ECKey) -> bytes:
    """A signed message for who holds the private half of `key`, an EC P-256 key for agreement."""
    from joserfc import jwe  # here, because most devices never need it

    header = {"alg": "ECDH-ES", "enc": "A256GCM", "cty": "JWS"}
    return jwe.encrypt_compact(header, token, key, registry=_registry()).encode()


def unseal(token: bytes, key: ECKey) -> bytes:
    """The signed message in a sealed one; raises SignatureError when `key` does not open it."""
    from joserfc import jwe

    try:
        return bytes(jwe.decrypt_compact(token, key, registry=_registry()).plaintext or b"")
    except (JoseError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(
            f"expected a message sealed for this receiver, got one that does not open ({error or 'malformed'})"
        ) from error


@cache
def _registry() -> "JWERegistry":
    from joserfc.jwe import JWERegistry

    registry = JWERegistry(algorithms=_ALGORITHMS)  # no `zip`: nothing is unpacked
    registry.max_ciphertext_length = _MOST
    return registry
