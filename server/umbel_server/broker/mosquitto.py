"""A configuration for mosquitto; see mosquitto.conf(5) on `use_identity_as_username` and `acl_file`."""

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


def write_config(state: State, folder: Path, broker: Broker) -> Path:
    """Write mosquitto's configuration, access list, certificate and key into `folder`; returns the configuration's path.

    mosquitto started by root runs as the broker's user (default: mosquitto). Raises UmbelError when that user does not exist.
    """
    folder = folder.resolve()
    write_trust(state, folder, broker)
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
    return ["Start it with:", f"  mosquitto -c {path}"]


def _acl() -> list[str]:
    own = f"umbel/{PROTOCOL}/%u"
    says = [f"pattern write {own}/{channel}" for channel in WRITTEN]
    return [f"user {pki.SERVER}", f"topic readwrite {EVERYTHING}", "", f"pattern read {own}/{READ}", *says]
