"""The files that every broker needs: its own certificate and key, and the certificate of the clients' authority."""

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
"""Bytes of a packet besides its payload, at most."""
LARGEST_PACKET = MAX_PAYLOAD + ROOM
"""The largest packet that a broker accepts, in bytes."""

MOST_QUEUED, MOST_IN_FLIGHT = 100_000, 1000
"""Messages that a broker keeps for one client, and sends it before the first is acknowledged.

The server gets the answers of a whole fleet; a broker's own limits (1,000 and 20 in mosquitto) drop the rest in silence.
"""

CERTIFICATE, KEY = "broker.pem", "broker-key.pem"
EVERYTHING = f"umbel/{PROTOCOL}/#"
"""The topic filter of the server: every topic of Umbel."""
READ, WRITTEN = "command", ("ack", "status", "result")
"""The channels that a device reads, and those that it writes."""


@dataclass(frozen=True)
class Broker:
    """The address on which a broker listens, and the user that runs it.

    Its certificate covers `hostnames` (default: the addresses that the server and the devices use), its `host`, and the
    loopback names. Files that root writes are given to `user`, unless it is empty.
    """

    host: str
    port: int
    hostnames: Sequence[str] = ()
    user: str = ""


def write_trust(state: State, folder: Path, broker: Broker) -> None:
    """Write the broker's certificate and key, unless valid ones exist, and the certificate of the clients' authority.

    Raises UmbelError when the certificate would cover a name of the API, or the folder overlaps the state folder.
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
    """The names of the broker's certificate; raises UmbelError on a name of the API.

    Someone with the broker's key could impersonate the server that has such a name.
    """
    config = state.config
    told = [config.mqtt.advertised_host, config.mqtt.host]
    names = [name for name in (*(broker.hostnames or told), broker.host) if name not in ANY]
    free = {pki.alternative(name) for name in (*LOOPBACK, *told) if name not in ANY}
    ours = {pki.alternative(n) for n in (*config.hostnames, config.http.host, machine_name()) if n not in ANY}
    for name in names:
        if pki.alternative(name) in ours - free:
            raise UmbelError(
                f"{name} is a name of the API, and the broker's key could impersonate the API; give the broker another name, "
                f'or, where one machine is both, say so in {state.folder / CONFIG}: advertised_host = "{name}" under [mqtt]'
            )
    return tuple(dict.fromkeys((*names, *LOOPBACK)))


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Replace the file at `path` with these lines, atomically."""
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def give(broker: Broker, folder: Path, names: Sequence[str]) -> None:
    """Give the folder and its files to the broker's user, when root wrote them; raises UmbelError on an unknown user."""
    if os.geteuid() != 0 or not broker.user:
        return
    try:
        for path in (folder, *(folder / name for name in (CERTIFICATE, KEY, pki.CA, *names))):
            shutil.chown(path, broker.user)
    except LookupError as error:
        raise UmbelError(
            f"there is no user {broker.user!r} on this machine; name the user that runs the broker with --user"
        ) from error
