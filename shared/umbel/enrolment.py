"""What a device and the server tell each other once, over HTTP, and how a device proves itself on every later request."""

import base64
import hashlib
import secrets
from typing import Annotated

import msgspec
from joserfc.jwk import ECKey
from msgspec import Meta, Struct

from umbel import signing
from umbel.errors import SignatureError
from umbel.signing import PublicKey

ENROL_PATH, TRUST_PATH = "/v1/enrol", "/v1/trust"
CONNECTION_PATH, CERTIFICATE_PATH = "/v1/connection", "/v1/certificate"
"""Where an enrolled device asks for its EnrolmentReply again, and for a certificate with a signing request in PEM."""
BLOB_PATH = "/v1/blobs/{sha256}"
UPLOAD_PATH = "/v1/uploads/{sha256}"
"""The upload of that blob for one command: HEAD says how far it has come, PATCH goes on with it."""
OFFSET, COMPLETE = "Upload-Offset", "Upload-Complete"
"""Headers of an upload, as in draft-ietf-httpbis-resumable-upload: bytes that have arrived; ?1 when all have, else ?0."""
MOST_PEM = 16_384
"""Characters of an authority's certificate."""
CLOCK_TOLERANCE = 300.0
"""Seconds that a device's clock may differ from the server's; it corrects for them by what the server answers."""
TOKEN_SECONDS = 60.0
"""How far the time of a request's token may be from the server's: it is good for no longer."""
MOST_NONCE = 64
"""Characters of the nonce of a request."""
SECRET_BYTES = 32
UNKNOWN, CLOCK = "unknown", "clock"
"""The `code` beside the `error` of a refusal that a device acts on: it is not enrolled; its clock is wrong. A suspended or
revoked device finds that state there."""


class EnrolmentRequest(Struct, frozen=True):
    """A device asks to be known by its public key; `secret` is the first part of its enrolment token.

    The population and the kind may be left to the invitation.
    """

    device: str
    kind: str
    key: PublicKey
    secret: str
    population: str = ""


class Trust(Struct, frozen=True, omit_defaults=True):
    """What a device trusts once and for all: the server's signing key, and the authority of its certificates (PEM).

    `ca` is empty for a server that speaks without TLS.
    """

    server_key: PublicKey
    ca: Annotated[str, Meta(max_length=MOST_PEM)] = ""

    def fingerprint(self) -> str:
        """43 base64url characters that no other server's trust has: of both, or the key's own where there is no authority."""
        key = signing.fingerprint(signing.import_public(self.server_key))
        return _base64url(hashlib.sha256(f"{key}.{self.ca}".encode()).digest()) if self.ca else key


class EnrolmentReply(Struct, frozen=True):
    """The server's signing key, where the broker listens and whether with TLS, and as what the device is known."""

    server_key: PublicKey
    broker_host: str
    broker_port: int
    population: str
    device: str
    kind: str
    broker_tls: bool = False


class Access(Struct, frozen=True):
    """One HTTP request of one device: it travels signed in the `Authorization: Bearer` header; `at` is Unix seconds.

    `path` is with the query, where there is one. `body` is the SHA-256, in hex, of a body that is no blob. A blob's is in the
    path, and the server keeps nothing that has another; what goes on with it is also bound to the `offset` in it, so whoever
    has the token and cuts or changes what follows makes the sender begin anew, and nothing else. An upload names the
    `command` that it answers. What changes something has a `nonce` of its own, and is taken once.
    """

    population: str
    device: str
    method: str
    path: str
    at: float
    command: str = ""
    body: str = ""
    offset: int = 0
    nonce: Annotated[str, Meta(max_length=MOST_NONCE)] = ""


def make_nonce() -> str:
    """128 random bits as the nonce of a request."""
    return secrets.token_hex(16)


def make_secret(data: bytes) -> str:
    """Random bytes as the secret of an enrolment token; it begins with a letter, as it is typed on command lines."""
    return "u" + base64.urlsafe_b64encode(data).decode().rstrip("=")


def make_token(secret: str, trust: Trust) -> str:
    """The enrolment token: `<secret>.<fingerprint of what to trust>`, so that the device can pin the server."""
    return f"{secret}.{trust.fingerprint()}"


def split_token(token: str) -> tuple[str, str]:
    """The secret and the trust's fingerprint; raises SignatureError when it is not an enrolment token."""
    secret, dot, fingerprint = token.partition(".")
    if not dot or not secret or len(fingerprint) != 43:
        raise SignatureError(
            "expected an enrolment token as 'umbel devices invite' prints it (secret.fingerprint), got another text"
        )
    return secret, fingerprint


def bearer(access: Access, key: ECKey) -> str:
    """The value of the `Authorization` header for one request."""
    return "Bearer " + signing.sign(msgspec.json.encode(access), key).decode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
