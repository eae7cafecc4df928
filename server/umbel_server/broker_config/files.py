"""What every broker is given: a certificate of its own, the authority of its clients', and files that its user can read."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from umbel.atomic import write_atomically
from umbel.errors import UmbelError
from umbel.topics import PROTOCOL
from umbel_server import pki
from umbel_server.broker import MAX_PAYLOAD
from umbel_server.state import ANY, State

ROOM = 1 << 16
"""Bytes of a packet beside its payload."""
LARGEST_PACKET = MAX_PAYLOAD + ROOM
"""Bytes of the largest packet that a broker takes."""

CERTIFICATE, KEY = "broker.pem", "broker-key.pem"
EVERYTHING = f"umbel/{PROTOCOL}/#"
"""The topics that are the server's."""
READ, WRITTEN = "command", ("ack", "status", "result")
"""The channels of its own that a device reads, and those that it writes."""


@dataclass(frozen=True)
class Broker:
    """Where a broker listens, and as whom it runs.

    Its certificate is for `hostnames` beside the server's own names and its `host`. Files that root writes are then the
    `user`'s, unless it is empty.
    """

    host: str
    port: int
    hostnames: Sequence[str] = ()
    user: str = ""


def write_trust(state: State, folder: Path, broker: Broker) -> None:
    """Write the broker's certificate and key, unless good ones are there, and the authority of its clients' certificates."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [*broker.hostnames, *([broker.host] if broker.host not in ANY else []), *state.names]
    certificate = pki.Pair(folder / CERTIFICATE, folder / KEY, "umbel-broker", tuple(dict.fromkeys(names)))
    certificate.keep(state.folder, datetime.now(UTC))
    write_atomically(folder / pki.CA, (state.folder / pki.CA).read_bytes())


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Replace the file at `path`."""
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def give(broker: Broker, folder: Path, names: Sequence[str]) -> None:
    """Make the folder, and those of its files, the broker's user's, where root wrote them; raises UmbelError on no user."""
    if os.geteuid() != 0 or not broker.user:
        return
    try:
        for path in (folder, *(folder / name for name in (CERTIFICATE, KEY, pki.CA, *names))):
            shutil.chown(path, broker.user)
    except LookupError as error:
        raise UmbelError(
            f"there is no user {broker.user!r} on this machine; name whom the broker runs as with --user"
        ) from error
