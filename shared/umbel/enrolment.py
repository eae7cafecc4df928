"""What a device and the server tell each other once, over HTTP, and how a device proves itself on every later request."""

import base64
import hashlib
import secrets
from typing import Annotated

import msgspec
from joserfc.jwk import ECKey
from msgspec import Meta, Struct

from umbel import signing, succession
from umbel.errors import NOT_DECODED, MessageError, SignatureError
from umbel.signing import PublicKey
from umbel.succession import Lineage, Successions

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
"""Seconds that a device's clock may differ from the server's, for which it corrects; one that differs more is reported, and
takes no work."""
TOKEN_SECONDS = 60.0
"""How far the time of a request's token may be from the server's: it is good for no longer."""
MOST_NONCE = 64
"""Characters of the nonce of a request."""
ENROLMENT, ACCESS, CERTIFICATE_REQUEST = "enrolment", "access", "certificate-request"
"""As what a device's enrolment, its requests, and what it wants certified, are signed."""
SECRET_BYTES = 32
UNKNOWN, CLOCK = "unknown", "clock"
"""The `code` beside the `error` of a refusal that a device acts on: it is not enrolled; its clock is wrong. A suspended or
revoked device finds that state there."""


class EnrolmentRequest(Struct, frozen=True):
    """A device asks to be known by its public key; `secret` is the first part of its enrolment token.

    The population and the kind may be left to the invitation. It travels in a JWS by that key, so that nobody has another's
    key enrolled.
    """

    device: str
    kind: str
    key: PublicKey
    secret: str
    population: str = ""


# Made here, in one thread: msgspec 0.22 crashes when several threads decode nested structs for the first time at once.
_REQUEST = msgspec.json.Decoder(EnrolmentRequest)


def sign_request(request: EnrolmentRequest, key: ECKey) -> bytes:
    """A request to enrol as it is sent, signed by the key that it names."""
    return signing.sign_as(ENROLMENT, msgspec.json.encode(request), key)


def read_request(data: bytes) -> EnrolmentRequest:
    """A request to enrol as it came; raises MessageError, and SignatureError unless the key that it names has signed it."""
    if data.lstrip()[:1] == b"{":
        raise MessageError("expected a request to enrol that the device's key has signed: upgrade the agent")
    try:
        request = _REQUEST.decode(signing.payload_unverified(data))
    except (SignatureError, *NOT_DECODED) as error:
        raise MessageError(f"expected a request to enrol, got one that does not parse: {error}") from error
    signing.verify_as(ENROLMENT, data, signing.import_public(request.key))
    return request


class Trust(Struct, frozen=True, omit_defaults=True):
    """What a device trusts once and for all: a signing key of the server, and the authority of its certificates (PEM).

    `ca` is empty for a server that speaks without TLS. `successions` lead from that key to the newest, and to those before
    it; they are known to be right only once there is a `lineage`.
    """

    server_key: PublicKey
    ca: Annotated[str, Meta(max_length=MOST_PEM)] = ""
    successions: Successions = ()

    def fingerprint(self) -> str:
        """43 base64url characters that no other server's trust has: of both, or the key's own where there is no authority."""
        key = signing.fingerprint(signing.import_public(self.server_key))
        return _base64url(hashlib.sha256(f"{key}.{self.ca}".encode()).digest()) if self.ca else key

    def lineage(self) -> Lineage:
        """The server's keys; raises SignatureError when the successions are not of the key that is trusted."""
        return succession.lineage(self.server_key, self.successions)

    def anchored(self, fingerprint: str) -> "Trust":
        """The same server, trusted for that of its keys which the fingerprint is of: it may have got another one since.

        Raises SignatureError when the fingerprint is of none of them.
        """
        for key in self.lineage().keys:
            one = msgspec.structs.replace(self, server_key=signing.public_key(key))
            if one.fingerprint() == fingerprint:
                return one
        raise SignatureError(f"no key of this server has the fingerprint {fingerprint[:8]}")

    def extended(self, told: "Trust") -> "Trust":
        """This with the successions in `told` that go on from its newest key; raises SignatureError when they are not right.

        A key that has a successor here gets no other one, whoever has signed that.
        """
        here, there = self.lineage(), told.lineage()
        newest = signing.fingerprint(here.newest)
        place = next((i for i, key in enumerate(there.keys) if signing.fingerprint(key) == newest), len(there.keys))
        more = msgspec.structs.replace(self, successions=(*self.successions, *told.successions[place:]))
        more.lineage()
        return more


# Made here, in one thread: msgspec 0.22 crashes when several threads decode nested structs for the first time at once.
_TRUST = msgspec.json.Decoder(Trust)


def read_trust(data: bytes) -> Trust:
    """Trust as it was told or kept, its lineage checked; raises SignatureError."""
    try:
        trust = _TRUST.decode(data)
    except NOT_DECODED as error:
        raise SignatureError(f"expected whom to trust, got something that does not parse: {error}") from error
    trust.lineage()
    return trust


class EnrolmentReply(Struct, frozen=True):
    """The server's newest signing key, where the broker listens and whether with TLS, and as what the device is known.

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
    return "Bearer " + signing.sign_as(ACCESS, msgspec.json.encode(access), key).decode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
