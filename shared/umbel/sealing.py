"""Signed messages that only one receiver can read: a JWS inside a JWE (RFC 7516), by ECDH-ES and A256GCM (RFC 7518, 4.6).

A message is signed, then encrypted. The encryption hides the content; only the signature inside proves the sender. Sealing
keys are never signing keys. A device makes a new sealing key in every process and stores none, so whoever recorded sealed
commands and takes the device later cannot open them.
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
"""The most characters of a ciphertext: more than the largest signed message has."""


def is_sealed(token: bytes) -> bool:
    """Whether a message looks sealed: a compact JWE has five parts."""
    return token.count(b".") == 4


def seal(token: bytes, key: ECKey) -> bytes:
    """Encrypt a signed message for the holder of the private half of `key`, an EC P-256 key agreement key."""
    from joserfc import jwe  # here, because most devices never need it

    header = {"alg": "ECDH-ES", "enc": "A256GCM", "cty": "JWS"}
    return jwe.encrypt_compact(header, token, key, registry=_registry()).encode()


def unseal(token: bytes, key: ECKey) -> bytes:
    """Decrypt a sealed message into the signed one; raises SignatureError when `key` does not open it."""
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

    registry = JWERegistry(algorithms=_ALGORITHMS)  # without `zip`: nothing is decompressed
    registry.max_ciphertext_length = _MOST
    return registry
