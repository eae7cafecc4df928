"""The certificate with which a device shows a broker who it is: asked for with its own key, and renewed in time."""

import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from umbel.atomic import write_atomically
from umbel.enrolment import CERTIFICATE_PATH
from umbel.errors import UmbelError
from umbel.tls import client_context
from umbel_edge.http import Refused, ServerHttp
from umbel_edge.state import KEY, AgentState

log = logging.getLogger("umbel.agent")

FILE = "certificate.pem"
LOOK_SECONDS = 3600.0
"""How often a running agent looks whether its certificate is due."""


class Certificate:
    """The device's certificate in its state folder, issued by the server that it trusts.

    `http` must know the server's authority already.
    """

    def __init__(self, state: AgentState, http: ServerHttp, clock: Callable[[], float]) -> None:
        self._state, self._http, self._clock = state, http, clock
        self._path, self._key = state.folder / FILE, state.folder / KEY
        self._context = client_context(http.ca)

    def context(self) -> ssl.SSLContext:
        """How to connect to the broker; whoever connects with it again shows the newest certificate."""
        self.keep()
        return self._context

    def due(self) -> int:
        """0 while the certificate is good; in its last third, or when it cannot be used, the hour it is now."""
        return int(self._clock() // LOOK_SECONDS) if self._is_due() else 0

    def keep(self) -> None:
        """Have a certificate, a new one if it is due. A server that issues none is taken as it is."""
        if self._is_due():
            try:
                answer = self._http.until_answered("POST", CERTIFICATE_PATH, self._request())
            except Refused as error:
                if error.bars:
                    raise
                log.info("the server issues no certificate: %s", error)
                return
            write_atomically(self._path, answer, mode=0o600)
            log.info("the device has a new certificate")
        try:
            self._context.load_cert_chain(self._path, self._key)
        except (OSError, ssl.SSLError) as error:
            self._path.unlink(missing_ok=True)
            raise UmbelError(
                f"{self._path}: the server's answer is no certificate of this device's key: {error}"
            ) from error

    def _is_due(self) -> bool:
        try:
            found = x509.load_pem_x509_certificate(self._path.read_bytes())
            issuer = x509.load_pem_x509_certificate(self._http.ca.encode()).subject
        except (OSError, ValueError):
            return True
        begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
        last_third = ends - (ends - begins) / 3
        now = datetime.fromtimestamp(self._clock(), UTC)
        return (
            found.issuer != issuer or found.public_key() != self._state.key.public_key or not begins <= now < last_third
        )

    def _request(self) -> bytes:
        """A signing request (RFC 2986): it proves that this device holds its key, the server knows the rest."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        key = self._state.key.private_key
        assert key is not None
        request = builder.sign(key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM)
