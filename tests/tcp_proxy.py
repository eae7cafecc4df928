"""A real TCP proxy between two real programs, which tests make as bad as a mobile link."""

import contextlib
import socket
import struct
import threading
import time
from collections import deque
from types import TracebackType

_PIECE = 1 << 14
_TICK = 0.05


class TcpProxy:
    """Listens on a free port of 127.0.0.1 and forwards to `target_port` there; `close` ends every connection.

    `sent` and `received` count the bytes forwarded to and from the target, `connections` those accepted. `latency` is
    seconds added to each piece in either direction; `rate`, when not 0, bounds bytes a second in each direction.
    """

    def __init__(self, target_port: int) -> None:
        self.sent = self.received = self.connections = 0
        self.latency = self.rate = 0.0
        self._target_port = target_port
        self._lock = threading.Lock()
        self._cuts: deque[int] = deque()
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = self._closed = False
        self._ended: dict[tuple[socket.socket, socket.socket], int] = {}
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._half_open: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "TcpProxy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The proxy's address for HTTP."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def cuts_left(self) -> int:
        """How many of the cuts asked for have not happened yet."""
        return len(self._cuts)

    def cut_after(self, *counts: int) -> None:
        """Break the connection when so many more bytes have gone to the target; then again for the next count."""
        with self._lock:
            self._cuts.extend(counts)

    def stall(self) -> None:
        """Forward nothing, but keep connections open, until `resume`."""
        self._flowing.clear()

    def resume(self) -> None:
        """Forward again after `stall` or `refuse`."""
        self._refusing = False
        self._flowing.set()

    def refuse(self) -> None:
        """Break every connection, and every new one at once, until `resume`."""
        self._refusing = True
        self.break_all()

    def break_all(self) -> None:
        """Break every connection now."""
        for pair in list(self._pairs):
            self._break(pair)

    def redirect(self, target_port: int) -> None:
        """Forward new connections to another target, and break the old ones."""
        self._target_port = target_port
        self.break_all()

    def change_network(self) -> None:
        """Break every connection on the client's side alone: the target hears nothing of it, and keeps its half open."""
        for pair in list(self._pairs):
            self._half_open.add(pair)
            self._pairs.discard(pair)
            _reset(pair[0])

    def close(self) -> None:
        """Stop listening and break every connection."""
        self._closed = True
        for pair in self._half_open:
            pair[1].close()
        self._flowing.set()
        self._listener.close()
        self.break_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._refusing:
                _reset(client)
                continue
            try:
                target = socket.create_connection(("127.0.0.1", self._target_port), timeout=5)
            except OSError:
                _reset(client)
                continue
            target.settimeout(None)
            for side in (client, target):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (client, target)
            self._pairs.add(pair)
            threading.Thread(target=self._pump, args=(pair, client, target), daemon=True).start()
            threading.Thread(target=self._pump, args=(pair, target, client), daemon=True).start()

    def _pump(self, pair: tuple[socket.socket, socket.socket], source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(_PIECE):
                while not self._flowing.wait(_TICK):
                    if pair not in self._pairs:
                        return
                if delay := self.latency + (len(data) / self.rate if self.rate else 0.0):
                    time.sleep(delay)
                if sink is pair[1]:
                    data, cut = self._allowed(data)
                    sink.sendall(data)
                    if cut:
                        self._break(pair)
                        return
                else:
                    sink.sendall(data)
                    with self._lock:
                        self.received += len(data)
            if pair not in self._half_open:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._break(pair)
        finally:
            self._leave(pair)

    def _leave(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """Close a connection that has ended in both directions."""
        if pair in self._half_open:
            return
        with self._lock:
            self._ended[pair] = self._ended.get(pair, 0) + 1
            if self._ended[pair] < 2:
                return
            del self._ended[pair]
        self._pairs.discard(pair)
        for side in pair:
            side.close()

    def _allowed(self, data: bytes) -> tuple[bytes, bool]:
        """What of `data` may still go to the target, and whether the connection breaks then."""
        with self._lock:
            cut = bool(self._cuts) and len(data) >= self._cuts[0]
            if cut:
                data = data[: self._cuts.popleft()]
            elif self._cuts:
                self._cuts[0] -= len(data)
            self.sent += len(data)
            return data, cut

    def _break(self, pair: tuple[socket.socket, socket.socket]) -> None:
        if pair in self._half_open:
            return
        self._pairs.discard(pair)
        _reset(pair[0])
        with contextlib.suppress(OSError):
            pair[1].shutdown(socket.SHUT_RDWR)
        pair[1].close()


def _reset(sock: socket.socket) -> None:
    """Close with RST, as a link that breaks looks to a program."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RD)  # wakes the thread that reads it
    sock.close()
