"""The server's signing keys in its folder: which one signs when."""

import stat
from pathlib import Path

import msgspec
import pytest

from umbel import signing
from umbel.enrolment import Trust
from umbel.errors import UmbelError
from umbel.signing import fingerprint, public_key
from umbel_server.security.keyring import GRACE, KEY, KEYS, Keyring

DAY = 86_400.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    signing.load_or_create_key(tmp_path / KEY)
    return tmp_path


def pems(folder: Path) -> int:
    return len(list(folder.glob("signing-key*.pem")))


def test_a_folder_of_before_has_one_key(folder: Path) -> None:
    keys = Keyring(folder)
    assert fingerprint(keys.current) == fingerprint(signing.load_or_create_key(folder / KEY))
    assert (list(keys.lineage.all), keys.successions, keys.switches) == ([fingerprint(keys.current)], (), None)
    assert not keys.advance(1e12)
    assert not (folder / KEYS).exists()


def test_the_new_key_signs_after_the_overlap_and_the_old_one_is_accepted_a_little_longer(folder: Path) -> None:
    keys = Keyring(folder)
    old = fingerprint(keys.current)
    keys.begin(7 * DAY, 1000.0)
    new = fingerprint(keys.lineage.newest)
    assert (fingerprint(keys.current), keys.switches, pems(folder)) == (old, 1000.0 + 7 * DAY, 2)
    assert not keys.advance(1000.0 + 7 * DAY - 1)
    assert fingerprint(Keyring(folder).current) == old
    assert keys.advance(1000.0 + 7 * DAY)
    assert not keys.advance(1000.0)  # whatever the clock does then
    again = Keyring(folder)
    for one in (keys, again):
        assert (fingerprint(one.current), one.switches) == (new, None)
        assert list(one.lineage.accepted(1000.0 + 7 * DAY + GRACE - 1)) == [old, new]
        assert list(one.lineage.accepted(1000.0 + 7 * DAY + GRACE)) == [new]
    assert pems(folder) == 1
    assert stat.S_IMODE(next(folder.glob("signing-key*.pem")).stat().st_mode) == 0o600


def test_only_one_key_is_on_its_way_at_a_time_unless_it_is_urgent(folder: Path) -> None:
    keys = Keyring(folder)
    keys.begin(DAY, 0.0)
    with pytest.raises(UmbelError, match="announced already"):
        keys.begin(DAY, 10.0)
    keys.begin(0.0, 10.0)
    assert list(keys.lineage.accepted(10.0)) == [fingerprint(keys.current)]
    assert len(keys.lineage.keys) == 3
    assert pems(folder) == 1
    assert fingerprint(Keyring(folder).current) == fingerprint(keys.current)


def test_devices_of_any_time_follow(folder: Path) -> None:
    keys = Keyring(folder)
    trusts = [Trust(public_key(keys.current), "ca", keys.successions)]
    for number in range(3):
        keys.begin(DAY, number * 2 * DAY)
        keys.advance(number * 2 * DAY + DAY)
        trusts.append(Trust(public_key(keys.current), "ca", keys.successions))
    for trust in trusts:
        assert list(trust.extended(trusts[-1]).lineage().accepted(1e9)) == [fingerprint(keys.current)]


def test_what_is_damaged_or_missing_is_said(folder: Path) -> None:
    Keyring(folder).begin(DAY, 0.0)
    path = folder / KEYS
    good = path.read_bytes()
    kept = msgspec.json.decode(good)
    for data in (b"", b"{}", good[:-10], msgspec.json.encode({**kept, "first": kept["first"] | {"x": "AAAA"}})):
        path.write_bytes(data)
        with pytest.raises(UmbelError, match=r"signing-keys\.json: expected the server's signing keys"):
            Keyring(folder)
    path.write_bytes(msgspec.json.encode({**kept, "schema": 2}))
    with pytest.raises(UmbelError, match="made by a newer Umbel"):
        Keyring(folder)
    path.write_bytes(good)
    for name in list(folder.glob("signing-key*.pem")):
        kept_key = name.read_bytes()
        name.write_bytes(signing.generate_key().as_pem(private=True))
        with pytest.raises(UmbelError, match="expected the signing key"):
            Keyring(folder)
        name.unlink()
        with pytest.raises(UmbelError, match="is missing; restore it"):
            Keyring(folder)
        name.write_bytes(kept_key)
