"""The embedded MQTT broker (rumqttd, from the iotcore package) as a child process with an MQTT 5 listener."""

import os
import socket
import tempfile
from pathlib import Path

import tomli_w
from iotcore import Broker

from umbel.errors import UmbelError
from umbel_server.security import pki

MAX_PAYLOAD = 1 << 20
START_SECONDS = 20.0


class EmbeddedBroker:
    """A broker on `host`:`port` (0: a free port), which ends with this process. A restart loses all its messages.

    It speaks TLS with the server's certificate in the state folder `tls`, or no TLS without one.
    """

    def __init__(self, host: str, port: int, tls: Path | None = None) -> None:
        self._host, self.port, self._tls = host, port, tls
        self._broker: Broker | None = None

    def start(self) -> None:
        """Start the broker and wait until it accepts connections; raises UmbelError when the port cannot be used."""
        self.port = self._claim()
        # rumqttd reads its configuration from a file, once, before it listens.
        with tempfile.TemporaryDirectory(prefix="umbel-broker-") as folder:
            path = Path(folder) / "rumqttd.toml"
            path.write_text(tomli_w.dumps(_config(self._host, self.port, self._tls)))
            try:
                broker = Broker(config_path=str(path))
                broker.start(timeout=START_SECONDS)
            except (OSError, RuntimeError, ValueError) as error:
                raise UmbelError(f"the embedded broker did not start on {self._host}:{self.port}: {error}") from error
        self._broker = broker

    def stop(self) -> None:
        """Stop the broker if it is running."""
        if self._broker is not None:
            self._broker.stop()
            self._broker = None

    def _claim(self) -> int:
        try:
            with socket.create_server((self._host, self.port)) as sock:
                return int(sock.getsockname()[1])
        except OSError as error:
            raise UmbelError(
                f"port {self.port} on {self._host} cannot be used for the broker ({os.strerror(error.errno or 0)}); "
                "stop what uses it, or choose another MQTT port"
            ) from error


def _config(host: str, port: int, tls: Path | None) -> dict[str, object]:
    files = {"certpath": pki.CERTIFICATE, "keypath": pki.CERTIFICATE_KEY}
    speaks = {} if tls is None else {"tls": {key: str((tls / name).resolve()) for key, name in files.items()}}
    return {
        "id": 0,
        "router": {
            "id": 0,
            "max_connections": 20_000,
            "max_outgoing_packet_count": 200,
            "max_segment_size": 100 * MAX_PAYLOAD,
            "max_segment_count": 4,
        },
        "v5": {
            "1": {
                "name": "umbel",
                "listen": f"{host}:{port}",
                "next_connection_delay_ms": 1,
                **speaks,
                "connections": {
                    "connection_timeout_ms": 60_000,
                    "max_payload_size": MAX_PAYLOAD,
                    "max_inflight_count": 100,
                    "dynamic_filters": True,
                },
            }
        },
    }
