"""The certificate with which a device shows a broker who it is: asked for in its own name, and renewed in time.

It is of a key that is made for it and lies beside it, as TLS needs one in a file; the device's signing key, which may be on a
token, vouches for the request.
"""

import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from umbel import signing
from umbel.atomic import write_atomically
from umbel.enrolment import CERTIFICATE_PATH, CERTIFICATE_REQUEST
from umbel.errors import UmbelError
from umbel.tls import client_context
from umbel_edge.connection.http import Refused, ServerHttp
from umbel_edge.device.state import AgentState

log = logging.getLogger("umbel.agent")

FILE = "certificate.pem"
LOOK_SECONDS = 3600.0
"""How often a running agent looks whether its certificate is due."""


class Certificate:
    """The device's certificate and its key, in one file of the state folder, issued by the server that it trusts.

    `http` must know the server's authority already.
    """

    def __init__(self, state: AgentState, http: ServerHttp, clock: Callable[[], float]) -> None:
        self._state, self._http, self._clock = state, http, clock
        self._path = state.folder / FILE
        self._context = client_context(http.ca)

    def context(self) -> ssl.SSLContext:
        """How to connect to the broker; whoever connects with it again shows the newest certificate."""
        self.keep()
        return self._context

    def due(self) -> int:
        """0 while the certificate is good; in its last third, or when it cannot be used, the hour it is now."""
        return int(self._clock() // LOOK_SECONDS) if self._is_due(self._held()) else 0

    def keep(self) -> None:
        """Have a certificate, a new one if it is due. Where the server issues none, the one before is shown while it is valid."""
        held = self._held()
        if self._is_due(held):
            key = ec.generate_private_key(ec.SECP256R1())
            try:
                answer = self._http.until_answered("POST", CERTIFICATE_PATH, self._request(key))
            except Refused as error:
                if error.bars:
                    raise
                log.info("the server issues no certificate: %s", error)
                if held is None:
                    return
            else:
                write_atomically(self._path, answer + _pem(key), mode=0o600)
                log.info("the device has a new certificate")
        try:
            self._context.load_cert_chain(self._path)
        except (OSError, ssl.SSLError) as error:
            self._path.unlink(missing_ok=True)
            raise UmbelError(
                f"{self._path}: the server's answer is not a certificate for this device's key: {error}"
            ) from error

    def _held(self) -> x509.Certificate | None:
        """The certificate in the file, if it is valid now, of the server's authority, and of the key beside it."""
        try:
            held = self._path.read_bytes()
            found = x509.load_pem_x509_certificate(held)
            key = serialization.load_pem_private_key(held, None)
            issuer = x509.load_pem_x509_certificate(self._http.ca.encode()).subject
        except (OSError, ValueError, TypeError):
            return None
        good = found.issuer == issuer and found.public_key() == key.public_key()
        return found if good and found.not_valid_before_utc <= self._now() < found.not_valid_after_utc else None

    def _is_due(self, held: x509.Certificate | None) -> bool:
        if held is None:
            return True
        begins, ends = held.not_valid_before_utc, held.not_valid_after_utc
        return self._now() >= ends - (ends - begins) / 3

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _request(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        """A signing request (RFC 2986) for `key`, which proves that it is held, in a JWS by the device's own key."""
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        return signing.sign_as(CERTIFICATE_REQUEST, request.public_bytes(serialization.Encoding.PEM), self._state.key)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, kind, serialization.NoEncryption())
