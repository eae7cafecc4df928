"""The server's own certificate authority, and the certificate with which it speaks TLS (RFC 5280, EC P-256)."""

import fcntl
import ipaddress
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from umbel.atomic import write_atomically
from umbel.errors import UmbelError

CA, CA_KEY, CERTIFICATE, CERTIFICATE_KEY = "ca.pem", "ca-key.pem", "tls.pem", "tls-key.pem"
FILES = (CA, CA_KEY, CERTIFICATE, CERTIFICATE_KEY)
CA_DAYS, DAYS, RENEWED_DAYS = 7300, 1825, 365
"""Days that the authority and a certificate are valid; a certificate is renewed when the server starts in its last year."""

_EARLIER = timedelta(days=1)
"""Devices' clocks may be behind: what is issued is valid from a day ago."""


def make_authority(folder: Path, now: datetime) -> None:
    """Make a certificate authority in `folder`: its certificate, and its key with mode 0600."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Umbel {x509.random_serial_number():x}"[:24])])
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


def keep_certificate(folder: Path, names: Sequence[str], now: datetime) -> bool:
    """Make the server's certificate for `names` (DNS names and addresses) unless there is one that is good for a year.

    Returns whether one was made. Raises UmbelError when the authority's files cannot be read, or a name is none.
    """
    alternatives = [_alternative(name) for name in dict.fromkeys(names)]
    with (folder / CA_KEY).open("rb") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        return _keep(folder, alternatives, names[0], now)


def _keep(folder: Path, alternatives: list[x509.GeneralName], common: str, now: datetime) -> bool:
    try:
        authority = x509.load_pem_x509_certificate((folder / CA).read_bytes())
        signer = serialization.load_pem_private_key((folder / CA_KEY).read_bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        if _is_good(folder, alternatives, authority, now):
            return False
    except (OSError, ValueError, AssertionError) as error:
        raise UmbelError(f"{folder}: {CA} and {CA_KEY} cannot be used ({error}); restore them from a backup") from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])
    certificate = (
        _builder(name, authority.subject, key.public_key(), now, DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    # The key first: a certificate without its key is made again, as its key's public half shows.
    write_atomically(folder / CERTIFICATE_KEY, _pem(key), mode=0o600)
    write_atomically(folder / CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))
    return True


def server_context(folder: Path) -> ssl.SSLContext:
    """TLS 1.3 with the server's certificate, for who listens; raises UmbelError when its files cannot be read."""
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


def _is_good(folder: Path, alternatives: list[x509.GeneralName], authority: x509.Certificate, now: datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
        key = serialization.load_pem_private_key((folder / CERTIFICATE_KEY).read_bytes(), None)
        certificate.verify_directly_issued_by(authority)
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        key.public_key() == certificate.public_key()
        and list(held) == alternatives
        and certificate.not_valid_after_utc > now.astimezone(UTC) + timedelta(days=RENEWED_DAYS)
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name.encode("idna").decode())
    except (UnicodeError, ValueError) as error:
        raise UmbelError(f"a host name or an address was expected, got {name!r}: {error}") from error


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, kind, serialization.NoEncryption())
