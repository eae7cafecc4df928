import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwe

from umbel import sealing, signing
from umbel.errors import SignatureError

KEY, OTHER = signing.generate_key(), signing.generate_key()
PUBLIC = signing.import_public(signing.public_key(KEY))
SEALED = sealing.seal(b"header.payload.signature", PUBLIC)


@pytest.mark.parametrize("size", [0, 1, 40_000, 250_000])
def test_who_holds_the_key_reads_what_was_sealed(size: int) -> None:
    token = b"x" * size
    sealed = sealing.seal(token, PUBLIC)
    assert sealing.unseal(sealed, KEY) == token
    assert sealing.is_sealed(sealed)
    assert not sealing.is_sealed(b"header.payload.signature")
    if size:
        with pytest.raises(SignatureError, match="does not open"):
            sealing.unseal(sealed, OTHER)


def test_the_same_message_is_never_sealed_to_the_same_bytes() -> None:
    assert sealing.seal(b"a.b.c", PUBLIC) != sealing.seal(b"a.b.c", PUBLIC)


@given(st.integers(0, len(SEALED) - 2), st.integers(1, 127))
def test_a_changed_byte_is_noticed(at: int, flip: int) -> None:
    changed = bytearray(SEALED)
    changed[at] ^= flip
    try:
        opened = sealing.unseal(bytes(changed), KEY)
    except SignatureError:
        return
    # The last character of each part has bits that mean nothing.
    assert opened == b"header.payload.signature"


@given(st.binary(max_size=300))
def test_no_bytes_crash_it(token: bytes) -> None:
    with pytest.raises(SignatureError):
        sealing.unseal(token, KEY)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "ECDH-ES", "enc": "A256GCM", "zip": "DEF"},
        {"alg": "ECDH-ES+A256KW", "enc": "A256GCM"},
        {"alg": "ECDH-ES", "enc": "A128CBC-HS256"},
    ],
)
def test_other_algorithms_and_compressed_bombs_are_refused(header: dict[str, str]) -> None:
    bomb = jwe.encrypt_compact(header, b"\0" * 100_000, PUBLIC, algorithms=list(header.values()))
    with pytest.raises(SignatureError, match="not allowed"):
        sealing.unseal(bomb.encode(), KEY)
