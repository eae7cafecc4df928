"""Real brokers that tests start, kill and start again on the same port."""

import shutil
import socket
import subprocess
from pathlib import Path

from tests.waiting import eventually
from umbel_server.broker.embedded import EmbeddedBroker
from umbel_sim.demo.processes import free_port


def mosquitto_program() -> str | None:
    return shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/opt/homebrew/sbin")


class EmbeddedProcess:
    """The embedded broker."""

    def __init__(self) -> None:
        self.port = free_port()
        self._broker: EmbeddedBroker | None = None

    def start(self) -> None:
        self._broker = EmbeddedBroker("127.0.0.1", self.port)
        self._broker.start()

    def stop(self) -> None:
        if self._broker is not None:
            self._broker.stop()


class Mosquitto:
    """Debian's mosquitto, forgetting everything when it stops."""

    def __init__(self, folder: Path, config: Path | None = None, port: int = 0) -> None:
        """With `config`, which listens on `port`; else a configuration that lets everybody do everything, in `folder`."""
        self.port = port or free_port()
        self._config = config or folder / "mosquitto.conf"
        if config is None:
            self._config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = mosquitto_program()
        assert program is not None
        self._process = subprocess.Popen(
            [program, "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        eventually(lambda: _listens(self.port))

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
