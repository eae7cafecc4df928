"""Real processes on loopback, all of them gone when the block is left."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from umbel.errors import UmbelError

STOP_SECONDS = 8.0
POLL_SECONDS = 0.05
PORT_TRIES = 100


def free_port() -> int:
    """A TCP port on loopback that nobody uses now.

    The system hands out ports above 32767 to connections, which may take one before its server listens. This one is lower.
    """
    for _ in range(PORT_TRIES):
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise UmbelError("no TCP port from 20000 to 31999 is free on 127.0.0.1; end some programs that listen there")


def program(name: str) -> str:
    """The console script `name` of this Python environment."""
    return str(Path(sys.executable).with_name(name))


class Processes:
    """Started programs by name, each with a log file in `folder`; leaving the block stops them, the highest tier first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._tiers: dict[str, int] = {}

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def log(self, name: str) -> Path:
        """Where the program's output goes."""
        return self._folder / f"{name}.log"

    def start(self, name: str, tier: int, *command: str) -> None:
        """Start a program in a session of its own, so that Ctrl-C reaches it only through us."""
        self._tiers[name] = tier
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
        with self.log(name).open("ab") as log, _signals_held_back():
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def until(self, ready: Callable[[], bool], seconds: float, what: str, blame: str) -> None:
        """Wait for `ready`; raises UmbelError naming a log when a program ends or `seconds` pass first."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise UmbelError(f"{what} took over {seconds:.0f} s; read {self.log(blame)}")
            time.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Raise UmbelError naming the log of a program that has ended."""
        for name, process in self._running.items():
            if (code := process.poll()) is not None:
                raise UmbelError(f"{name} ended with exit code {code}; read {self.log(name)}")

    def stop(self) -> None:
        """Ask every program to end, tier by tier, and kill what does not within a few seconds."""
        with _signals_held_back():
            running, self._running = self._running, {}
            for tier in sorted(set(self._tiers.values()), reverse=True):
                _end([process for name, process in running.items() if self._tiers[name] == tier])


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block is done, so that no process is started and not yet known, or left.

    Masking them would be inherited by the programs that are started. Only the main thread gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
