"""A process that is killed while it rotates the server's signing keys leaves the old keys or the new ones."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from umbel import signing
from umbel.enrolment import Trust
from umbel.signing import fingerprint, public_key
from umbel_server.moments import VARIABLE
from umbel_server.security.keyring import KEY, Keyring

DAY = 86_400.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    signing.load_or_create_key(tmp_path / KEY)
    return tmp_path


def pems(folder: Path) -> int:
    return len(list(folder.glob("signing-key*.pem")))


ROTATING = """
import sys
from pathlib import Path
from umbel_server.security.keyring import Keyring
keys = Keyring(Path(sys.argv[1]))
keys.begin(float(sys.argv[2]), 0.0)
keys.advance(float(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("moment", "overlap"),
    [("key made", 0.0), ("key made", DAY), ("key endorsed", 0.0), ("key endorsed", DAY), ("key switched", DAY)],
)
def test_a_server_that_is_killed_while_it_rotates_has_the_old_keys_or_the_new(
    folder: Path, moment: str, overlap: float
) -> None:
    before = Keyring(folder)
    trust = Trust(public_key(before.current), "ca", before.successions)
    killed_at(moment, folder, overlap)
    after = Keyring(folder)
    after.advance(0.0)
    extended = trust.extended(Trust(public_key(after.current), "ca", after.successions))
    assert fingerprint(after.current) in extended.lineage().accepted(overlap)
    assert len(after.lineage.keys) == (1 if moment == "key made" else 2)
    assert pems(folder) == (2 if moment == "key endorsed" and overlap else 1)
    switched = moment == "key switched" or (moment == "key endorsed" and not overlap)
    assert (fingerprint(after.current) != fingerprint(before.current)) == switched
    if moment == "key made":
        after.begin(overlap, 0.0)
    after.advance(overlap)
    assert fingerprint(after.current) == fingerprint(after.lineage.newest) != fingerprint(before.current)
    assert pems(folder) == 1


def killed_at(moment: str, folder: Path, overlap: float) -> None:
    """Rotate in a process, and kill that when it comes to a moment."""
    path = folder.parent / f"{folder.name}.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(30)
        process = subprocess.Popen(
            [sys.executable, "-c", ROTATING, str(folder), str(overlap)], env={**os.environ, VARIABLE: str(path)}
        )
        try:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if connection.recv(64).decode().strip() == moment:
                        process.send_signal(signal.SIGKILL)
                        break
                    connection.sendall(b"go\n")
        finally:
            process.kill()
            assert process.wait() == -signal.SIGKILL
