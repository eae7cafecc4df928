"""A configuration for mosquitto; see mosquitto.conf(5) on `use_identity_as_username` and `acl_file`."""

import os
import pwd
import stat
from dataclasses import replace
from pathlib import Path

from umbel.topics import PROTOCOL
from umbel_server.broker.files import (
    CERTIFICATE,
    EVERYTHING,
    KEY,
    LARGEST_PACKET,
    MOST_IN_FLIGHT,
    MOST_QUEUED,
    READ,
    WRITTEN,
    Broker,
    give,
    write_lines,
    write_trust,
)
from umbel_server.security import pki
from umbel_server.state_folder import State

CONFIG, ACL = "mosquitto.conf", "mosquitto.acl"
USER, ROOT = "mosquitto", "root"
"""The user that mosquitto's own packages make; root."""


def write_config(state: State, folder: Path, broker: Broker) -> Path:
    """Write mosquitto's configuration, access list, certificate and key into `folder`; returns the configuration's path.

    mosquitto started by root runs as the broker's user; without one as USER if that exists here and can reach the folder,
    else as root. Raises UmbelError when the broker's user does not exist.
    """
    folder = folder.resolve()
    write_trust(state, folder, broker)
    if not broker.user and os.geteuid() == 0:
        broker = replace(broker, user=_user_for(folder))
    write_lines(folder / ACL, _acl())
    lines = [
        f"listener {broker.port} {broker.host}",
        f"cafile {folder / pki.CA}",
        f"certfile {folder / CERTIFICATE}",
        f"keyfile {folder / KEY}",
        "tls_version tlsv1.3",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",  # a client that took another's id would end the other's connection
        "allow_anonymous false",
        f"acl_file {folder / ACL}",
        f"max_packet_size {LARGEST_PACKET}",
        "persistence false",
        f"max_queued_messages {MOST_QUEUED}",
        f"max_inflight_messages {MOST_IN_FLIGHT}",
        *([f"user {broker.user}"] if broker.user else []),
    ]
    write_lines(folder / CONFIG, lines)
    give(broker, folder, (CONFIG, ACL))
    return folder / CONFIG


def start_of(path: Path) -> list[str]:
    """Lines that tell a person how to start mosquitto with the configuration at `path`."""
    lines = ["Start it with:", f"  mosquitto -c {path}"]
    if f"user {ROOT}" in path.read_text().splitlines():
        lines.append(
            f"It runs as root, because the user {USER} does not exist or cannot reach {path.parent}; "
            "choose a folder such as /etc/umbel-mosquitto, or name another user with --user."
        )
    return lines


def _user_for(folder: Path) -> str:
    """USER if it exists on this machine and may enter every folder above `folder`, else root."""
    try:
        found = pwd.getpwnam(USER)
    except KeyError:
        return ROOT
    groups = os.getgrouplist(USER, found.pw_gid)
    for parent in folder.parents:
        seen = parent.stat()
        bit = stat.S_IXUSR if seen.st_uid == found.pw_uid else stat.S_IXGRP if seen.st_gid in groups else stat.S_IXOTH
        if not seen.st_mode & bit:
            return ROOT
    return USER


def _acl() -> list[str]:
    own = f"umbel/{PROTOCOL}/%u"
    says = [f"pattern write {own}/{channel}" for channel in WRITTEN]
    return [f"user {pki.SERVER}", f"topic readwrite {EVERYTHING}", "", f"pattern read {own}/{READ}", *says]
