"""Enrolment over HTTP: the messages that device and server exchange once, and the token that signs each later request."""

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
"""Paths for an enrolled device: the first returns its EnrolmentReply again, the second answers a certificate signing
request in PEM with a certificate."""
BLOB_PATH = "/v1/blobs/{sha256}"
UPLOAD_PATH = "/v1/uploads/{sha256}"
"""The upload of one blob for one command: HEAD tells how many bytes have arrived, PATCH appends more."""
OFFSET, COMPLETE = "Upload-Offset", "Upload-Complete"
"""Headers of an upload (draft-ietf-httpbis-resumable-upload): the number of bytes that have arrived; ?1 when that is all
of them, else ?0."""
MOST_PEM = 16_384
"""The most characters of a certificate authority's certificate."""
CLOCK_TOLERANCE = 300.0
"""The most seconds by which a device's clock may differ from the server's. The device corrects for a smaller difference;
with a larger one it reports the difference and takes no work."""
TOKEN_SECONDS = 60.0
"""The most seconds between the time in a request's token and the server's time; outside them the token is expired."""
MOST_NONCE = 64
"""The most characters of a request's nonce."""
ENROLMENT, ACCESS, CERTIFICATE_REQUEST = "enrolment", "access", "certificate-request"
"""Purposes in the JWS header (`signing.sign_as`): a request to enrol, an HTTP request, a certificate signing request."""
SECRET_BYTES = 32
UNKNOWN, CLOCK = "unknown", "clock"
"""Values of `code`, beside `error`, in a refusal that a device acts on: the device is not enrolled; its clock is wrong.
For a suspended or revoked device `code` is that state."""


class EnrolmentRequest(Struct, frozen=True):
    """A device's request to register its public key; `secret` is the first part of its enrolment token.

    An empty population or kind is taken from the invitation. The request travels in a JWS signed by `key`, so that nobody
    can enrol a key of somebody else.
    """

    device: str
    kind: str
    key: PublicKey
    secret: str
    population: str = ""


# Made here, in one thread: msgspec 0.22 crashes when several threads decode nested structs for the first time at once.
_REQUEST = msgspec.json.Decoder(EnrolmentRequest)


def sign_request(request: EnrolmentRequest, key: ECKey) -> bytes:
    """The request as a compact JWS, signed by `key`, which must be the private half of the key in the request."""
    return signing.sign_as(ENROLMENT, msgspec.json.encode(request), key)


def read_request(data: bytes) -> EnrolmentRequest:
    """Decode a signed request to enrol; raises MessageError, and SignatureError unless the key in the request signed it."""
    if data.lstrip()[:1] == b"{":
        raise MessageError("expected a request to enrol that the device's key has signed: upgrade the agent")
    try:
        request = _REQUEST.decode(signing.payload_unverified(data))
    except (SignatureError, *NOT_DECODED) as error:
        raise MessageError(f"expected a request to enrol, got one that does not parse: {error}") from error
    signing.verify_as(ENROLMENT, data, signing.import_public(request.key))
    return request


class Trust(Struct, frozen=True, omit_defaults=True):
    """A device's trust in a server: one of its signing keys, and the authority of its TLS certificates (`ca`, PEM).

    `ca` is empty for a server without TLS. `successions` connect that key with the server's older and newer ones. They are
    unverified until `lineage` has checked them.
    """

    server_key: PublicKey
    ca: Annotated[str, Meta(max_length=MOST_PEM)] = ""
    successions: Successions = ()

    def fingerprint(self) -> str:
        """43 base64url characters that identify the server: a digest of key and authority; the key's own without `ca`."""
        key = signing.fingerprint(signing.import_public(self.server_key))
        return _base64url(hashlib.sha256(f"{key}.{self.ca}".encode()).digest()) if self.ca else key

    def lineage(self) -> Lineage:
        """The server's signing keys, verified; raises SignatureError when the successions do not include the trusted key."""
        return succession.lineage(self.server_key, self.successions)

    def anchored(self, fingerprint: str) -> "Trust":
        """This trust with `server_key` replaced by the key of the same server that has `fingerprint`.

        An enrolment token keeps working so after the server has rotated its key. Raises SignatureError when no key of the
        server has the fingerprint.
        """
        for key in self.lineage().keys:
            one = msgspec.structs.replace(self, server_key=signing.public_key(key))
            if one.fingerprint() == fingerprint:
                return one
        raise SignatureError(f"no key of this server has the fingerprint {fingerprint[:8]}")

    def extended(self, told: "Trust") -> "Trust":
        """This trust plus the successions in `told` that follow its newest key; raises SignatureError when one is invalid.

        A successor that is already known here is never replaced, whoever signed the other one.
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
    """Decode a Trust from the server or from a file, and check its lineage; raises SignatureError."""
    try:
        trust = _TRUST.decode(data)
    except NOT_DECODED as error:
        raise SignatureError(
            f"expected the server's keys and authority, got JSON that does not parse: {error}"
        ) from error
    trust.lineage()
    return trust


class EnrolmentReply(Struct, frozen=True):
    """The server's newest signing key, the broker's address, and the name under which the device is registered.

    `broker_tls` says whether the broker speaks TLS. `at` is the server's time in Unix seconds. Every later command of the
    server has a higher `sequence` than the one here. `epoch` is the newest session of this device that the server knows,
    `answered` the highest sequence of its final answers. `protocol` is the version of the server's messages.
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
    """The token of one HTTP request of one device, sent signed in the `Authorization: Bearer` header.

    `at` is Unix seconds. `path` includes the query. `body` is the SHA-256, in hex, of the request's body. It is empty for
    the upload of a blob, whose digest is in the path: the server keeps no blob that has another digest. An upload names the
    `command` that it answers, and the `offset` at which its bytes begin. Somebody who has copied the token and changes the
    bytes can make the sender start the upload again, and can do nothing else. A request that changes something carries a
    `nonce`, and the server accepts each nonce once.
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
    """A new nonce: 128 random bits in hex."""
    return secrets.token_hex(16)


def make_secret(data: bytes) -> str:
    """`data`, random bytes, as the secret of an enrolment token: base64url after a "u".

    The letter keeps a secret that is typed on a command line from being read as an option.
    """
    return "u" + base64.urlsafe_b64encode(data).decode().rstrip("=")


def make_token(secret: str, trust: Trust) -> str:
    """The enrolment token: `<secret>.<fingerprint of the trust>`. By the fingerprint a device recognises its server."""
    return f"{secret}.{trust.fingerprint()}"


def split_token(token: str) -> tuple[str, str]:
    """The secret and the fingerprint in an enrolment token; raises SignatureError on other text."""
    secret, dot, fingerprint = token.partition(".")
    if not dot or not secret or len(fingerprint) != 43:
        raise SignatureError(
            "expected an enrolment token as 'umbel devices invite' prints it (secret.fingerprint), got another text"
        )
    return secret, fingerprint


def bearer(access: Access, key: ECKey) -> str:
    """The value of the `Authorization` header for one request: the token, signed by the device's `key`."""
    return "Bearer " + signing.sign_as(ACCESS, msgspec.json.encode(access), key).decode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
