"""What a device and the server tell each other once, over HTTP, and how a device proves itself on every later request."""

import base64
import hashlib
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
"""Seconds that a device's clock may differ from the server's; one that differs more is reported, and takes no work."""
ACCESS = "access"
"""As what a device's requests are signed."""
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
    """The server's signing key, where the broker listens and whether with TLS, and as what the device is known.

    `at` is the server's time. Every command that it gives from now on has a higher `sequence`. `epoch` and `answered` are the
    newest session and the highest sequence of a final answer that it has of this device. `protocol` is that of its messages.
    """

    server_key: PublicKey
    broker_host: str
    broker_port: int
    population: str
    device: str
    kind: str
    broker_tls: bool = False
    at: float = 0.0
    sequence: Annotated[int, Meta(ge=0, le=2**62)] = 0
    epoch: Annotated[int, Meta(ge=0, le=2**62)] = 0
    answered: Annotated[int, Meta(ge=0, le=2**62)] = 0
    protocol: int = 1


class Access(Struct, frozen=True):
    """One HTTP request of one device: it travels signed in the `Authorization: Bearer` header; `at` is Unix seconds.

    An upload names the `command` that it answers.
    """

    population: str
    device: str
    method: str
    path: str
    at: float
    command: str = ""


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
    return "Bearer " + signing.sign_as(ACCESS, msgspec.json.encode(access), key).decode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
