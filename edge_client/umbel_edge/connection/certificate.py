"""The client certificate that a device shows to the broker, requested from the server and renewed in time.

The certificate has a key of its own in the same file, because TLS needs the key in a file. The device's signing key, which
may be on a token, signs the request for the certificate.
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
"""Seconds between two checks whether the certificate is due for renewal."""


class Certificate:
    """The device's certificate and its key, in one file of the state folder; the trusted server issues the certificate.

    `http` must know the server's authority already (ServerHttp.use).
    """

    def __init__(self, state: AgentState, http: ServerHttp, clock: Callable[[], float]) -> None:
        self._state, self._http, self._clock = state, http, clock
        self._path = state.folder / FILE
        self._context = client_context(http.ca)

    def context(self) -> ssl.SSLContext:
        """The TLS context for the broker; later connections with it show the newest certificate."""
        self.keep()
        return self._context

    def due(self) -> int:
        """0 while the certificate is good; the current hour (since 1970) in its last third, or when it cannot be used."""
        return int(self._clock() // LOOK_SECONDS) if self._is_due(self._held()) else 0

    def keep(self) -> None:
        """Renew the certificate if it is due, and load it. If the server issues none, a valid older one is used.

        Raises UmbelError when the server's answer is not a certificate for the key, Refused when the device is barred.
        """
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
        """The certificate in the file, if it is valid now, issued by the server's authority, and for the key in the file."""
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
        """A certificate request (RFC 2986) signed by `key`, in a JWS signed by the device's own key."""
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        return signing.sign_as(CERTIFICATE_REQUEST, request.public_bytes(serialization.Encoding.PEM), self._state.key)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, kind, serialization.NoEncryption())
