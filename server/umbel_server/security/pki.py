"""The server's own certificate authority. It certifies the server, its broker and the devices (RFC 5280, EC P-256)."""

import fcntl
import ipaddress
import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from umbel.atomic import write_atomically
from umbel.errors import SignatureError, UmbelError

CA, CA_KEY, CERTIFICATE, CERTIFICATE_KEY = "ca.pem", "ca-key.pem", "tls.pem", "tls-key.pem"
CA_DAYS, DAYS, RENEWED_DAYS = 7300, 1825, 365
"""Days for which the authority and a certificate are valid; the server renews a certificate in its last year, at start."""

DEVICE_DAYS = 90
"""Days for which a device's certificate is valid."""

SERVER = "umbel-server"
"""The name by which a broker knows the server; the name of every device contains a '/'."""

_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*")

_EARLIER = timedelta(days=1)
"""A certificate is valid from a day before it is issued, because a device's clock may be behind."""


def make_authority(folder: Path, now: datetime) -> None:
    """Make a certificate authority in `folder`: its certificate, and its key with mode 0600."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _named(f"Umbel {x509.random_serial_number():x}"[:24])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _builder(name, name, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_atomically(folder / CA_KEY, _pem(key), mode=0o600)
    write_atomically(folder / CA, certificate.public_bytes(serialization.Encoding.PEM))


@dataclass(frozen=True)
class Pair:
    """The files of a certificate and its key, its `common` name, and the `names` and addresses of a listening side."""

    certificate: Path
    key: Path
    common: str
    names: tuple[str, ...] = ()

    def keep(self, folder: Path, now: datetime) -> bool:
        """Issue the certificate by the authority in `folder`, unless a valid one with more than a year left exists.

        Returns whether it was issued. Raises UmbelError when the authority's files cannot be read, or a name is not valid.
        """
        alternatives = [alternative(name) for name in self.names]
        with _authority(folder) as (authority, signer):
            if self._is_good(alternatives, authority, now):
                return False
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = _issue(authority, signer, self.common, alternatives, key.public_key(), now, DAYS)
            # The key is written first: a certificate that does not match its key is issued again.
            write_atomically(self.key, _pem(key), mode=0o600)
            write_atomically(self.certificate, certificate.public_bytes(serialization.Encoding.PEM))
        return True

    def _is_good(self, alternatives: list[x509.GeneralName], authority: x509.Certificate, now: datetime) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate.read_bytes())
            key = serialization.load_pem_private_key(self.key.read_bytes(), None)
            certificate.verify_directly_issued_by(authority)
        except (OSError, ValueError, TypeError, InvalidSignature):
            return False
        return (
            key.public_key() == certificate.public_key()
            and _names_of(certificate) == alternatives
            and certificate.not_valid_after_utc > now.astimezone(UTC) + timedelta(days=RENEWED_DAYS)
        )


def own(folder: Path, names: Sequence[str]) -> Pair:
    """The server's own certificate for `names`: it serves HTTP with it, and connects to its broker with it."""
    return Pair(folder / CERTIFICATE, folder / CERTIFICATE_KEY, SERVER, tuple(dict.fromkeys(names)))


def certify(folder: Path, request: bytes, common: str, now: datetime) -> str:
    """Issue a device's certificate (PEM, valid for DEVICE_DAYS) for the key of its signing request (PEM, RFC 2986).

    Only the key is taken from the request. It must be an EC P-256 key that signed the request; raises SignatureError
    otherwise.
    """
    try:
        asked = x509.load_pem_x509_csr(request)
        proven, key = asked.is_signature_valid, asked.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"expected a certificate signing request in PEM, could not read one: {error}") from error
    if not proven or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SignatureError("the certificate signing request should be for an EC P-256 key, and signed with it")
    with _authority(folder) as (authority, signer):
        certificate = _issue(authority, signer, common, [], key, now, DEVICE_DAYS)
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


@contextmanager
def _authority(folder: Path) -> Iterator[tuple[x509.Certificate, ec.EllipticCurvePrivateKey]]:
    """The authority's certificate and key, locked against other processes."""
    try:
        with (folder / CA_KEY).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            authority = x509.load_pem_x509_certificate((folder / CA).read_bytes())
            signer = serialization.load_pem_private_key(file.read(), None)
            if not isinstance(signer, ec.EllipticCurvePrivateKey):
                raise ValueError("its key is no EC key")
            yield authority, signer
    except (OSError, ValueError) as error:
        raise UmbelError(f"{folder}: {CA} and {CA_KEY} cannot be used ({error}); restore them from a backup") from error


def _issue(
    authority: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    common: str,
    alternatives: list[x509.GeneralName],
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
) -> x509.Certificate:
    listens = [ExtendedKeyUsageOID.SERVER_AUTH] if alternatives else []
    builder = (
        _builder(_named(common), authority.subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([*listens, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _names_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _named(common: str) -> x509.Name:
    # RFC 5280 allows 64 characters, and `population/device` may be longer; TLS libraries and brokers accept that.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common, _validate=False)])


def server_context(folder: Path) -> ssl.SSLContext:
    """A TLS 1.3 context with the server's certificate for listening; raises UmbelError when its files cannot be read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(folder / CERTIFICATE, folder / CERTIFICATE_KEY)
    except (OSError, ssl.SSLError) as error:
        raise UmbelError(f"{folder}: {CERTIFICATE} and {CERTIFICATE_KEY} cannot be used: {error}") from error
    return context


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
    )


def alternative(name: str) -> x509.GeneralName:
    """A host name or an address in the form of a certificate's alternative name; raises UmbelError when it is neither."""
    try:
        address = ipaddress.ip_address(name)
        if "%" not in name:  # a zone index has a meaning on this machine only
            return x509.IPAddress(address)
    except ValueError:
        pass
    try:
        encoded = name.encode("idna").decode().lower()
    except UnicodeError:
        encoded = ""
    if len(encoded) > 253 or not _HOST.fullmatch(encoded):
        raise UmbelError(f"a host name or an address such as umbel.example or 192.0.2.1 was expected, got {name!r}")
    return x509.DNSName(encoded)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, kind, serialization.NoEncryption())
