"""The server's own authority, and the certificates that it issues to itself."""

import ipaddress
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from umbel.errors import SignatureError, UmbelError
from umbel_server.security import pki

NOW = datetime(2026, 11, 25, tzinfo=UTC)
NAMES = ["umbel.example", "127.0.0.1", "::1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pki.make_authority(tmp_path, NOW)
    assert pki.own(tmp_path, NAMES).keep(tmp_path, NOW)
    return tmp_path


def certificate(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / pki.CERTIFICATE).read_bytes())


def test_a_certificate_is_for_the_servers_names_and_issued_by_its_authority(folder: Path) -> None:
    authority, own = x509.load_pem_x509_certificate((folder / pki.CA).read_bytes()), certificate(folder)
    own.verify_directly_issued_by(authority)
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["umbel.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(name) for name in NAMES[1:]]
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    for one in (authority, own):
        key = one.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"
    pki.server_context(folder)


def test_keys_are_private(folder: Path) -> None:
    for name in (pki.CA_KEY, pki.CERTIFICATE_KEY):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_a_certificate_stays_until_its_last_year_or_until_names_change(folder: Path) -> None:
    first = certificate(folder).serial_number
    assert not pki.own(folder, NAMES).keep(folder, NOW + timedelta(days=pki.DAYS - pki.RENEWED_DAYS - 1))
    assert certificate(folder).serial_number == first
    assert pki.own(folder, [*NAMES, "new.example"]).keep(folder, NOW)
    assert pki.own(folder, NAMES).keep(folder, NOW)
    assert pki.own(folder, NAMES).keep(folder, NOW + timedelta(days=pki.DAYS - pki.RENEWED_DAYS + 1))
    assert certificate(folder).not_valid_after_utc > NOW + timedelta(days=2 * pki.DAYS - pki.RENEWED_DAYS)


@pytest.mark.parametrize("name", [pki.CERTIFICATE, pki.CERTIFICATE_KEY])
@pytest.mark.parametrize("data", [None, b"", b"-----BEGIN nothing", "another's"])
def test_a_damaged_or_foreign_certificate_is_made_again(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, name: str, data: bytes | str | None
) -> None:
    path = folder / name
    if data is None:
        path.unlink()
    elif isinstance(data, bytes):
        path.write_bytes(data)
    else:
        other = tmp_path_factory.mktemp("other")
        pki.make_authority(other, NOW)
        pki.own(other, NAMES).keep(other, NOW)
        path.write_bytes((other / name).read_bytes())
    assert pki.own(folder, NAMES).keep(folder, NOW)
    pki.server_context(folder)


@pytest.mark.parametrize("name", [pki.CA, pki.CA_KEY])
def test_an_authority_that_cannot_be_read_is_said_to_be(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"gone")
    with pytest.raises(UmbelError, match=r"restore them from a backup"):
        pki.own(folder, NAMES).keep(folder, NOW)


def test_a_name_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(UmbelError, match="a host name or an address such as"):
        pki.own(folder, ["a" * 64 + ".example"]).keep(folder, NOW)


def test_only_tls_1_3_is_spoken(folder: Path) -> None:
    assert pki.server_context(folder).minimum_version == ssl.TLSVersion.TLSv1_3


def test_a_device_is_certified_by_the_key_that_it_proves_to_hold(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    made = x509.load_pem_x509_certificate(pki.certify(folder, _asked(key), "home/phone", NOW).encode())
    made.verify_directly_issued_by(x509.load_pem_x509_certificate((folder / pki.CA).read_bytes()))
    assert made.public_key() == key.public_key()
    assert made.subject.rfc4514_string() == "CN=home/phone"
    assert made.not_valid_after_utc == NOW + timedelta(days=pki.DEVICE_DAYS)
    usages = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_request_that_proves_nothing_is_refused(folder: Path) -> None:
    good = _asked(ec.generate_private_key(ec.SECP256R1()))
    begin, end = b"-----BEGIN CERTIFICATE REQUEST-----\n", b"\n-----END CERTIFICATE REQUEST-----\n"
    signature = good.removesuffix(end)[-12:]
    for wrong in (
        b"",
        b"nonsense",
        b"\xff",
        begin + b"AAAA" + end,
        good.replace(signature, signature.swapcase()),
        _asked(ec.generate_private_key(ec.SECP384R1())),
        _asked(rsa.generate_private_key(65537, 2048)),
    ):
        with pytest.raises(SignatureError, match="certificate signing request"):
            pki.certify(folder, wrong, "home/phone", NOW)


def _asked(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)
