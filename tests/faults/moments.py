"""Waiting for one moment of a run, and holding the server there while a fault is injected."""

import random
import socketserver
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from umbel_server.moments import LONGEST_HOLD

MOMENTS = ("offered", "accepted", "uploading", "uploaded", "folded", "committing", "committed")
RANDOM = "random"
PER_DEVICE = ("accepted", "uploading", "uploaded", "folded")
"""Moments that come once a device in a round; the others come at least once a round."""


@dataclass(frozen=True)
class When:
    """The `count`-th occurrence of a moment (of any, when `name` is RANDOM) in round `round`, counting from 1."""

    name: str
    round: int
    count: int

    @classmethod
    def draw(cls, name: str, rounds: int, devices: int, rng: random.Random) -> Self:
        """A moment that a run of `rounds` with `devices` will surely come to."""
        most = devices // 2 if name in PER_DEVICE else devices if name == RANDOM else 1
        return cls(name, rng.randint(1, rounds), rng.randint(1, most))


class Moments:
    """Listens on a Unix socket to what a server comes to; `reached` is set while the server is held at `when`."""

    def __init__(self, path: Path, when: When) -> None:
        self.path, self.when = path, when
        self.reached, self.released = threading.Event(), threading.Event()
        self.seen: list[str] = []
        self._round, self._count = 1, 0
        self._lock = threading.Lock()
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                name = self.rfile.readline().decode().strip()
                if outer.is_it(name):
                    outer.reached.set()
                    outer.released.wait(LONGEST_HOLD - 1)
                try:
                    self.wfile.write(b"go\n")
                except OSError:
                    return  # the server was killed while it was held

        class Listener(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            request_queue_size = 128

        self._listener = Listener(str(path), Handler)
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), name="moments", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let the server go on."""
        self.released.set()

    def stop(self) -> None:
        """End the listener."""
        self.release()
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join(5)
        self.path.unlink(missing_ok=True)

    def is_it(self, name: str) -> bool:
        with self._lock:
            self.seen.append(name)
            here = self._round == self.when.round and self.when.name in (name, RANDOM)
            self._count += here
            if name == "committed":
                self._round += 1
            return here and self._count == self.when.count and not self.reached.is_set()
