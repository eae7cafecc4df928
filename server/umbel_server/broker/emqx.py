"""A configuration for EMQX 5.7 and newer: settings to add to `emqx.conf` (HOCON), and rules in `acl.conf` (Erlang terms).

A device's certificate names `<population>/<device>`. EMQX 6 does not expand a placeholder whose value contains a `/`, so
a rule with `${username}` would match nothing. The two halves of the name therefore become attributes of the client
(`mqtt.client_attrs_init`, since EMQX 5.7), and the rules use those. The server's name has no second half: a rule whose
attribute is missing does not apply, and what no rule allows is denied. Neither half can contain `+`, `#` or `/`
(umbel.topics.check_name).
"""

import json
from pathlib import Path

from umbel.topics import PROTOCOL
from umbel_server.broker.files import (
    CERTIFICATE,
    EVERYTHING,
    KEY,
    LARGEST_PACKET,
    READ,
    WRITTEN,
    Broker,
    give,
    write_lines,
    write_trust,
)
from umbel_server.security import pki
from umbel_server.state_folder import State

CONFIG, ACL = "emqx.conf", "acl.conf"
POPULATION, DEVICE = "umbel_population", "umbel_device"
"""The attributes of a client for the two halves of its name."""


def write_config(state: State, folder: Path, broker: Broker) -> Path:
    """Write EMQX's settings, access list, certificate and key into `folder`; returns the settings' path.

    Raises UmbelError when the broker's user does not exist.
    """
    folder = folder.resolve()
    write_trust(state, folder, broker)
    write_lines(folder / ACL, _acl())
    write_lines(folder / CONFIG, _settings(folder, broker))
    give(broker, folder, (CONFIG, ACL))
    return folder / CONFIG


def start_of(path: Path) -> list[str]:
    """Lines that tell a person how to start EMQX with the settings at `path`."""
    return [
        "Add it to EMQX's own configuration (5.7 or newer), give that a node.cookie of its own, and start EMQX:",
        f"  cat {path} >> /etc/emqx/emqx.conf && systemctl restart emqx",
    ]


def _settings(folder: Path, broker: Broker) -> list[str]:
    host = f"[{broker.host}]" if ":" in broker.host else broker.host

    def quoted(text: object) -> str:
        return json.dumps(str(text))  # HOCON's quoted strings are JSON's

    return [
        "# A client authenticates with its TLS certificate, issued by Umbel's authority, and in no other way.",
        "listeners.ssl.default {",
        "  enable = true",
        f"  bind = {quoted(f'{host}:{broker.port}')}",
        "  enable_authn = false",
        "  max_conn_rate = 500/s",
        "  ssl_options {",
        f"    cacertfile = {quoted(folder / pki.CA)}",
        f"    certfile = {quoted(folder / CERTIFICATE)}",
        f"    keyfile = {quoted(folder / KEY)}",
        '    versions = ["tlsv1.3"]',
        "    verify = verify_peer",
        "    fail_if_no_peer_cert = true",
        "  }",
        "}",
        "listeners.tcp.default.enable = false",
        "listeners.ws.default.enable = false",
        "listeners.wss.default.enable = false",
        "",
        "mqtt {",
        "  peer_cert_as_username = cn",
        "  peer_cert_as_clientid = cn",  # a client that took another's id would end the other's connection
        "  client_attrs_init = [",
        f"    {{expression = {quoted(_half(1))}, set_as_attr = {POPULATION}}}",
        f"    {{expression = {quoted(_half(2))}, set_as_attr = {DEVICE}}}",
        "  ]",
        f"  max_packet_size = {LARGEST_PACKET >> 10}KB",
        "  max_topic_levels = 5",
        "  shared_subscription = false",
        "}",
        "",
        "authorization {",
        "  no_match = deny",
        "  deny_action = ignore",
        f"  sources = [{{type = file, enable = true, path = {quoted(folder / ACL)}}}]",
        "}",
        "",
        "# Only statuses of devices are retained.",
        f"retainer {{enable = true, max_payload_size = {LARGEST_PACKET >> 10}KB}}",
        "",
        "# The dashboard has a well-known password until it is changed, so it listens on this machine only.",
        'dashboard.listeners.http.bind = "127.0.0.1:18083"',
    ]


def _half(number: int) -> str:
    return f"nth({number}, tokens(cn, '/'))"


def _acl() -> list[str]:
    own = f"umbel/{PROTOCOL}/${{client_attrs.{POPULATION}}}/${{client_attrs.{DEVICE}}}"
    said = ", ".join(f'"{own}/{channel}"' for channel in WRITTEN if channel != "status")
    return [
        f'{{allow, {{username, "{pki.SERVER}"}}, all, ["{EVERYTHING}"]}}.',
        f'{{allow, all, subscribe, ["{own}/{READ}"]}}.',
        f'{{allow, all, publish, ["{own}/status"]}}.',
        f"{{allow, all, {{publish, [{{retain, false}}]}}, [{said}]}}.",
        "{deny, all}.",
    ]
