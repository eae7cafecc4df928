from base64 import urlsafe_b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from umbel.atomic import write_atomically
from umbel.errors import NOT_DECODED, SignatureError

ALGORITHM = "ES256"

Keys = ECKey | Mapping[str, ECKey]
"""The accepted signing keys: a single key, or several by fingerprint."""


class UnknownKey(SignatureError):
    """A token that names a signing key which is not accepted here; `key` is the fingerprint it names, unverified."""

    def __init__(self, key: str) -> None:
        super().__init__(f"expected a message signed by a key that is accepted here, got one by key {key[:8]!r}")
        self.key = key


class PublicKey(msgspec.Struct, frozen=True):
    """An EC P-256 public key as a JWK (RFC 7517); `x` and `y` are base64url coordinates."""

    kty: Annotated[str, msgspec.Meta(max_length=16)]
    crv: Annotated[str, msgspec.Meta(max_length=16)]
    x: Annotated[str, msgspec.Meta(max_length=64)]
    y: Annotated[str, msgspec.Meta(max_length=64)]


def generate_key() -> ECKey:
    """A new EC P-256 private key."""
    return ECKey.generate_key("P-256")


def load_or_create_key(path: Path) -> ECKey:
    """The private key in the PEM file at `path`; a new one, with mode 0600, when there is no file.

    Raises SignatureError when the file does not hold such a key.
    """
    if not path.exists():
        write_atomically(path, generate_key().as_pem(private=True), mode=0o600)
    try:
        return ECKey.import_key(path.read_bytes())
    except (JoseError, ValueError, OSError) as error:
        raise SignatureError(f"{path}: expected an EC P-256 private key in PEM, could not read one: {error}") from error


def public_key(key: ECKey) -> PublicKey:
    """The public half of `key`."""
    return msgspec.convert(key.as_dict(private=False), PublicKey, strict=False)


def import_public(key: PublicKey) -> ECKey:
    """Convert a JWK into a key that can verify; raises SignatureError when it is not a point on P-256."""
    if (key.kty, key.crv) != ("EC", "P-256"):
        raise SignatureError(f"expected an EC P-256 public key, got {key.kty!r} {key.crv!r}")
    try:
        return ECKey.import_key(msgspec.to_builtins(key))
    except (JoseError, ValueError) as error:
        raise SignatureError(f"expected an EC P-256 public key, got one that does not load: {error}") from error


def fingerprint(key: ECKey) -> str:
    """The key's JWK thumbprint (RFC 7638): 43 base64url characters."""
    return str(key.thumbprint())


def sign(payload: bytes, key: ECKey) -> bytes:
    """`payload` as a compact JWS (RFC 7515) with ES256; its header names the key by fingerprint."""
    return jws.serialize_compact({"alg": ALGORITHM, "kid": fingerprint(key)}, payload, key).encode()


def verify(token: bytes, keys: Keys) -> bytes:
    """The payload of a compact JWS, verified with `keys`: the single key, or the one that the JWS header names.

    Raises UnknownKey when the header names none of them, SignatureError when the signature does not verify.
    """
    key = keys if isinstance(keys, ECKey) else _named(token, keys)
    try:
        return bytes(jws.deserialize_compact(token, key, algorithms=[ALGORITHM]).payload)
    except (JoseError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(
            f"expected a message signed by key {fingerprint(key)[:8]}, got one that does not verify ({error or 'malformed'})"
        ) from error


def _named(token: bytes, keys: Mapping[str, ECKey]) -> ECKey:
    signer = signer_of(token)
    if signer not in keys:
        raise UnknownKey(signer)
    return keys[signer]


def sign_as(kind: str, payload: bytes, key: ECKey) -> bytes:
    """As `sign`, for the purpose `kind` only: the header's `typ` is `umbel-<kind>` (RFC 8725, section 3.11)."""
    header = {"alg": ALGORITHM, "typ": f"umbel-{kind}", "kid": fingerprint(key)}
    return jws.serialize_compact(header, payload, key).encode()


def verify_as(kind: str, token: bytes, key: Keys) -> bytes:
    """As `verify`; raises SignatureError also when the token was signed for another purpose, or for none."""
    payload = verify(token, key)
    check_kind(kind, token)
    return payload


class _Header(msgspec.Struct):
    typ: str = ""


def check_kind(kind: str, token: bytes) -> None:
    """Raise SignatureError unless a token, already verified, was signed for the purpose `kind`."""
    header = token.split(b".", 1)[0]
    try:
        found = msgspec.json.decode(urlsafe_b64decode(header + b"=" * (-len(header) % 4)), type=_Header).typ
    except (ValueError, *NOT_DECODED) as error:
        raise SignatureError(
            f"expected a token signed as umbel-{kind}, got one with an unreadable header: {error}"
        ) from error
    if found != f"umbel-{kind}":
        raise SignatureError(f"expected a token signed as umbel-{kind}, got one signed as {found[:40] or 'nothing'}")


def signer_of(token: bytes) -> str:
    """The fingerprint of the key that a compact JWS names, unverified; raises SignatureError when it is not a JWS."""
    try:
        header = jws.extract_compact(token).headers()
    except (JoseError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(
            f"expected a signed message, got bytes that are not a JWS ({error or 'malformed'})"
        ) from error
    return str(header.get("kid", ""))


def payload_unverified(token: bytes) -> bytes:
    """The payload of a compact JWS, unverified: use it only to find the key to verify with; raises SignatureError."""
    try:
        return bytes(jws.extract_compact(token).payload)
    except (JoseError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(
            f"expected a signed message, got bytes that are not a JWS ({error or 'malformed'})"
        ) from error
