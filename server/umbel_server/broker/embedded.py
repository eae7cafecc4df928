"""The embedded MQTT broker (rumqttd, from the iotcore package) as a child process with an MQTT 5 listener."""

import logging
import os
import socket
import tempfile
import threading
from pathlib import Path

import tomli_w
from iotcore import Broker

from umbel.errors import UmbelError
from umbel.loops import Loop
from umbel_server.security import pki
from umbel_server.state_folder import listener, reachable

MAX_PAYLOAD = 1 << 20
START_SECONDS = 20.0
LOOK_SECONDS = 0.5
FIRST_PAUSE, LAST_PAUSE = 1.0, 60.0
"""Seconds before the next attempt to start a broker that ended and did not start: the first time, and at most."""

log = logging.getLogger("umbel.server")


class _Broker(Broker):  # type: ignore[misc]  # it has no types
    """iotcore's broker, which looks for a listener on IPv6 at an address in brackets and so never finds it."""

    @staticmethod
    def _listener_ready(addr: str) -> bool:
        host, port = addr.rsplit(":", 1)
        try:
            socket.create_connection((reachable(host.strip("[]")), int(port)), timeout=1.0).close()
        except OSError:
            return False
        return True


class EmbeddedBroker:
    """A broker on `host`:`port` (0: a free port), which ends with this process. A restart loses all its messages.

    It speaks TLS with the server's certificate in the state folder `tls`, or no TLS without one. A thread watches it, and
    starts it again when it ends.
    """

    def __init__(self, host: str, port: int, tls: Path | None = None) -> None:
        self._host, self.port, self._tls = host, port, tls
        self._broker: Broker | None = None
        self._turn, self._stopping = threading.Lock(), threading.Event()
        self._watcher = Loop("embedded broker", self._watch, self._stopping, log)
        self.problem = ""
        """Why the broker does not run at this moment; empty while it runs."""

    def start(self) -> None:
        """Start the broker and wait until it accepts connections; raises UmbelError when the port cannot be used."""
        self._start()
        self._watcher.start()

    def stop(self) -> None:
        """Stop the broker if it is running."""
        self._stopping.set()
        with self._turn:
            if self._broker is not None:
                self._broker.stop()
                self._broker = None

    def _start(self) -> None:
        self.port = self._claim()
        # rumqttd reads its configuration from a file, once, before it listens.
        with tempfile.TemporaryDirectory(prefix="umbel-broker-") as folder:
            path = Path(folder) / "rumqttd.toml"
            path.write_text(tomli_w.dumps(_config(self._host, self.port, self._tls)))
            try:
                broker = _Broker(config_path=str(path))
                broker.start(timeout=START_SECONDS)
            except (OSError, RuntimeError, ValueError) as error:
                raise UmbelError(f"the embedded broker did not start on {self._host}:{self.port}: {error}") from error
        self._broker = broker

    def _watch(self) -> None:
        pause = FIRST_PAUSE
        while not self._stopping.wait(LOOK_SECONDS):
            with self._turn:
                if self._stopping.is_set() or self._broker is None or self._broker.is_running:
                    pause = FIRST_PAUSE
                    continue
                if not self.problem:
                    self.problem = "the embedded broker has ended; the server starts it again"
                    log.error("the embedded broker on %s:%s has ended; starting it again", self._host, self.port)
                try:
                    self._start()
                except UmbelError as error:
                    self.problem = str(error)
                    log.error("%s; trying again in %.0f s", error, pause)
                else:
                    self.problem = ""
                    log.warning("the embedded broker runs again; devices connect by themselves")
            if self.problem:
                self._stopping.wait(pause)
                pause = min(2 * pause, LAST_PAUSE)

    def _claim(self) -> int:
        try:
            with listener(self._host, self.port) as sock:
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
                "listen": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
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
