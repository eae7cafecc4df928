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
from umbel_server.broker.embedded import MAX_PAYLOAD
from umbel_server.security import pki
from umbel_server.state_folder import ANY, CONFIG, LOOPBACK, State, machine_name

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

    Its certificate is for `hostnames` (default: where the server and the devices are told that it is), its `host` and this
    machine. Files that root writes are then the `user`'s, unless it is empty.
    """

    host: str
    port: int
    hostnames: Sequence[str] = ()
    user: str = ""


def write_trust(state: State, folder: Path, broker: Broker) -> None:
    """Write the broker's certificate and key, unless good ones are there, and the authority of its clients' certificates.

    Raises UmbelError when a name is not the broker's to have, or the folder is the state's.
    """
    home, target = state.folder.resolve(), folder.resolve()
    if target == home or target in home.parents or home in target.parents:
        raise UmbelError(f"{folder}: the state folder {state.folder} is there; name a folder apart from it")
    names = names_of(state, broker)
    if not broker.user.isprintable() or " " in broker.user:
        raise UmbelError(f"a user of this machine was expected, got {broker.user!r}")
    folder.mkdir(parents=True, exist_ok=True)
    certificate = pki.Pair(folder / CERTIFICATE, folder / KEY, "umbel-broker", names)
    certificate.keep(state.folder, datetime.now(UTC))
    write_atomically(folder / pki.CA, (state.folder / pki.CA).read_bytes())


def names_of(state: State, broker: Broker) -> tuple[str, ...]:
    """What the broker's certificate is for; raises UmbelError on a name of the API, as which its key could pass."""
    config = state.config
    told = [config.mqtt.advertised_host, config.mqtt.host]
    names = [name for name in (*(broker.hostnames or told), broker.host) if name not in ANY]
    free = {pki.alternative(name) for name in (*LOOPBACK, *told) if name not in ANY}
    ours = {pki.alternative(n) for n in (*config.hostnames, config.http.host, machine_name()) if n not in ANY}
    for name in names:
        if pki.alternative(name) in ours - free:
            raise UmbelError(
                f"{name} is a name of the API, and who has the broker's key could pass as it; give the broker another name, "
                f'or, where one machine is both, say so in {state.folder / CONFIG}: advertised_host = "{name}" under [mqtt]'
            )
    return tuple(dict.fromkeys((*names, *LOOPBACK)))


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
