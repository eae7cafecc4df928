"""Signing keys that follow each other: who trusts one of them trusts all, and nobody who is not of them."""

import math

import msgspec
import pytest
from joserfc.jwk import ECKey

from umbel import release, signing, succession
from umbel.enrolment import Trust, make_token, read_trust, split_token
from umbel.errors import SignatureError
from umbel.release import ReleaseManifest
from umbel.signing import UnknownKey, fingerprint, public_key
from umbel.succession import Succession, Successor, lineage, succeed

KEYS = [signing.generate_key() for _ in range(4)]
LINKS = tuple(succeed(KEYS[i], KEYS[i + 1], 100.0 * i, 100.0 * i + 50.0) for i in range(3))


def names(*keys: ECKey) -> list[str]:
    return [fingerprint(key) for key in keys]


@pytest.mark.parametrize("place", range(4))
def test_who_trusts_one_key_trusts_all(place: int) -> None:
    found = lineage(public_key(KEYS[place]), LINKS)
    assert list(found.all) == names(*KEYS)
    assert found.until == (50.0, 150.0, 250.0, math.inf)
    assert found.made == (0.0, 0.0, 100.0, 200.0)
    assert fingerprint(found.newest) == fingerprint(KEYS[3])


def test_keys_are_accepted_until_they_are_retired() -> None:
    found = lineage(public_key(KEYS[0]), LINKS)
    assert [list(found.accepted(now)) for now in (49.9, 50.0, 249.0, 1e12)] == [
        names(*KEYS),
        names(*KEYS[1:]),
        names(*KEYS[2:]),
        names(KEYS[3]),
    ]


def test_a_rotation_at_once_retires_all_before_it() -> None:
    slow = succeed(KEYS[0], KEYS[1], 0.0, 1000.0)
    at_once = succeed(KEYS[1], KEYS[2], 10.0, 10.0)
    assert list(lineage(public_key(KEYS[0]), (slow, at_once)).accepted(11.0)) == names(KEYS[2])


def test_a_chain_that_does_not_hold_is_refused() -> None:
    stranger = signing.generate_key()
    first, second, third = LINKS
    for root, links, sentence in (
        (stranger, LINKS, "do not go back to the one"),
        (KEYS[0], (first, third), "follows another key"),
        (KEYS[0], (second, first), "follows another key"),
        (KEYS[0], (first, succeed(KEYS[1], KEYS[0], 1.0, 2.0)), "follows another key"),
        (KEYS[0], (succeed(KEYS[0], KEYS[0], 1.0, 2.0),), "follows another key"),
        (KEYS[0], (Succession(first.by_old, second.by_new),), "does not verify"),
        (KEYS[0], (Succession(first.by_new, first.by_new),), "does not verify"),
        (KEYS[0], (Succession(first.by_old, first.by_old),), "does not verify"),
        (KEYS[0], (Succession("", ""),), "not a JWS"),
    ):
        with pytest.raises(SignatureError, match=sentence):
            lineage(public_key(root), links)


@pytest.mark.parametrize("signs", [(False, True), (True, False), (False, False)])
def test_both_keys_must_vouch(signs: tuple[bool, bool]) -> None:
    old, new, thief = KEYS[0], KEYS[1], signing.generate_key()
    payload = msgspec.json.encode(Successor("signing-key", public_key(old), public_key(new), 0.0, 1.0))
    by_old, by_new = (
        signing.sign_as(succession.KIND, payload, key if right else thief)
        for key, right in zip((old, new), signs, strict=True)
    )
    with pytest.raises(SignatureError):
        succession.read(Succession(by_old.decode(), by_new.decode()))


def test_the_two_keys_say_the_same() -> None:
    other = succeed(KEYS[0], KEYS[1], 0.0, 51.0)
    with pytest.raises(SignatureError, match="they differ"):
        succession.read(Succession(LINKS[0].by_old, other.by_new))


def test_nothing_else_that_the_server_signs_reads_like_a_succession() -> None:
    manifest = ReleaseManifest(1, "id", "run", 1, "plan", "task", {}, 0.0, {})
    claims = msgspec.to_builtins(Successor("signing-key", public_key(KEYS[0]), public_key(KEYS[1]), 0.0, 1.0))
    tokens = [release.sign(manifest, KEYS[0]).decode()]
    tokens.append(signing.sign(msgspec.json.encode({**msgspec.to_builtins(manifest), **claims}), KEYS[0]).decode())
    for token in tokens:
        with pytest.raises(SignatureError, match="does not parse"):
            succession.read(Succession(token, token))


def test_an_old_token_fits_a_server_that_has_other_keys_now() -> None:
    then = Trust(public_key(KEYS[1]), "an authority", LINKS[:1])
    now = Trust(public_key(KEYS[3]), "an authority", LINKS)
    _, pin = split_token(make_token("secret", then))
    anchored = now.anchored(pin)
    assert anchored.server_key == then.server_key
    assert anchored.fingerprint() == pin
    assert read_trust(msgspec.json.encode(anchored)) == anchored
    for other in (Trust(public_key(KEYS[1]), "another", LINKS), Trust(public_key(KEYS[1]), "", LINKS)):
        with pytest.raises(SignatureError, match="no key of this server"):
            other.anchored(pin)


@pytest.mark.parametrize("have", range(4))
def test_a_device_that_missed_rotations_catches_up(have: int) -> None:
    device = Trust(public_key(KEYS[0]), "ca", LINKS[:have])
    told = Trust(public_key(KEYS[3]), "ca", LINKS)
    assert device.extended(told) == Trust(public_key(KEYS[0]), "ca", LINKS)
    assert told.extended(device) == told  # a server that was restored from an older backup takes nothing away
    later = Trust(public_key(KEYS[2]), "ca", ())
    assert list(later.extended(told).lineage().all) == names(*KEYS[2:])


def test_a_thief_of_a_key_that_has_an_heir_cannot_name_another() -> None:
    thiefs = signing.generate_key()
    fork = Trust(public_key(KEYS[0]), "ca", (succeed(KEYS[0], thiefs, 0.0, 1e12),))
    device = Trust(public_key(KEYS[0]), "ca", LINKS[:1])
    assert device.extended(fork) == device


def test_another_server_adds_nothing() -> None:
    others = [signing.generate_key() for _ in range(2)]
    told = Trust(public_key(others[0]), "ca", (succeed(*others, 0.0, 1.0),))
    device = Trust(public_key(KEYS[0]), "ca")
    assert device.extended(told) == device


def test_of_several_keys_the_one_that_is_named_verifies() -> None:
    keys = lineage(public_key(KEYS[0]), LINKS).accepted(60.0)
    assert signing.verify(signing.sign(b"hello", KEYS[2]), keys) == b"hello"
    with pytest.raises(UnknownKey) as unknown:
        signing.verify(signing.sign(b"hello", KEYS[0]), keys)
    assert unknown.value.key == fingerprint(KEYS[0])
    header, payload, _ = signing.sign(b"hello", KEYS[2]).split(b".")
    forged = b".".join((header, payload, signing.sign(b"hello", KEYS[0]).split(b".")[2]))
    with pytest.raises(SignatureError, match="does not verify"):
        signing.verify(forged, keys)
