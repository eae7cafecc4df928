import stat
from pathlib import Path

import pytest

from umbel import enrolment, signing
from umbel.errors import SignatureError
from umbel.signing import PublicKey


def test_a_key_file_is_private_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    key = signing.load_or_create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert signing.fingerprint(signing.load_or_create_key(path)) == signing.fingerprint(key)


def test_a_damaged_key_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("-----BEGIN PRIVATE KEY-----\nnot a key\n-----END PRIVATE KEY-----\n")
    with pytest.raises(SignatureError, match="could not read one"):
        signing.load_or_create_key(path)


def test_the_public_half_verifies_and_cannot_sign(tmp_path: Path) -> None:
    key = signing.generate_key()
    public = signing.import_public(signing.public_key(key))
    assert signing.verify(signing.sign(b"hello", key), public) == b"hello"
    assert signing.fingerprint(public) == signing.fingerprint(key)


def test_points_that_are_not_on_the_curve_are_refused() -> None:
    with pytest.raises(SignatureError):
        signing.import_public(PublicKey("EC", "P-256", "AAAA", "BBBB"))


@pytest.mark.parametrize(
    ("kind", "curve"), [("EC", "P-384"), ("EC", "-256"), ("OKP", "Ed25519"), ("oct", ""), ("", "P-256")]
)
def test_keys_of_other_kinds_are_refused(kind: str, curve: str) -> None:
    point = signing.public_key(signing.generate_key())
    with pytest.raises(SignatureError, match="expected an EC P-256 public key"):
        signing.import_public(PublicKey(kind, curve, point.x, point.y))


def test_an_enrolment_token_holds_the_servers_fingerprint() -> None:
    key = signing.generate_key()
    trust = enrolment.Trust(signing.public_key(key))
    assert enrolment.split_token(enrolment.make_token("secret", trust)) == ("secret", signing.fingerprint(key))
    authority = enrolment.Trust(trust.server_key, "an authority")
    assert authority.fingerprint() != trust.fingerprint()
    assert enrolment.split_token(enrolment.make_token("secret", authority)) == ("secret", authority.fingerprint())
    for wrong in ("", "secret", ".abc", "secret.short"):
        with pytest.raises(SignatureError, match="enrolment token"):
            enrolment.split_token(wrong)
