"""A configuration of mosquitto in which a device can reach its own topics and no others.

A client is who its certificate says: the name in it is `<population>/<device>`, which is also the middle of its topics, and
the server's is one that no device can have. See mosquitto.conf(5) on `use_identity_as_username` and `acl_file`.
"""

import os
import shutil
from collections.abc import Sequence
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

CONFIG, ACL, CERTIFICATE, KEY = "mosquitto.conf", "mosquitto.acl", "broker.pem", "broker-key.pem"


def write_config(state: State, folder: Path, host: str, port: int, hostnames: Sequence[str], user: str = "") -> Path:
    """Write mosquitto's configuration, access list, certificate and key into `folder`; returns the first.

    It listens on `host`:`port`, and its certificate is for `hostnames` beside the server's own names. Started by root it
    runs as `user` (default: mosquitto), whose the files are then, where root writes them. Raises UmbelError on no user.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    names = [*hostnames, *([host] if host not in ANY else []), *state.names]
    certificate = pki.Pair(folder / CERTIFICATE, folder / KEY, "umbel-broker", tuple(dict.fromkeys(names)))
    certificate.keep(state.folder, datetime.now(UTC))
    write_atomically(folder / pki.CA, (state.folder / pki.CA).read_bytes())
    write_atomically(folder / ACL, _acl().encode())
    lines = [
        f"listener {port} {host}",
        f"cafile {folder / pki.CA}",
        f"certfile {folder / CERTIFICATE}",
        f"keyfile {folder / KEY}",
        "tls_version tlsv1.3",
        "require_certificate true",
        "use_identity_as_username true",
        "allow_anonymous false",
        f"acl_file {folder / ACL}",
        f"max_packet_size {MAX_PAYLOAD + ROOM}",
        "persistence false",
        *([f"user {user}"] if user else []),
    ]
    write_atomically(folder / CONFIG, "".join(f"{line}\n" for line in lines).encode())
    if os.geteuid() == 0 and user:
        _give(user, [folder, *(folder / name for name in (CONFIG, ACL, CERTIFICATE, KEY, pki.CA))])
    return folder / CONFIG


def _give(user: str, paths: Sequence[Path]) -> None:
    try:
        for path in paths:
            shutil.chown(path, user)
    except LookupError as error:
        raise UmbelError(f"there is no user {user!r} on this machine; name whom mosquitto runs as") from error


def _acl() -> str:
    own = f"umbel/{PROTOCOL}/%u"
    says = [f"pattern write {own}/{channel}" for channel in ("ack", "status", "result")]
    rules = [f"user {pki.SERVER}", f"topic readwrite umbel/{PROTOCOL}/#", "", f"pattern read {own}/command", *says]
    return "".join(f"{rule}\n" for rule in rules)
