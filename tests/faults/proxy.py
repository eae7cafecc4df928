"""A TCP proxy that can be cut, and stalled, while connections run through it."""

import asyncio
import threading
from typing import Self

PIECE = 1 << 14


class Proxy:
    """Listens on `host` at a free port and passes bytes to and from `target`, in a thread of its own.

    `cut` resets every connection and refuses new ones, `stall` keeps them and passes nothing on; `restore` ends both.
    """

    def __init__(self, target: tuple[str, int], host: str = "127.0.0.1") -> None:
        self._target, self.host, self.port = target, host, 0
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def start(self) -> Self:
        """Listen."""
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(5)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    def cut(self) -> None:
        """Reset every connection, and refuse new ones."""
        self._loop.call_soon_threadsafe(self._cut)

    def stall(self) -> None:
        """Keep the connections, and pass nothing on."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def restore(self) -> None:
        """Pass everything on again, what was held back first."""

        def restore() -> None:
            self._is_cut = False
            self._flowing.set()

        self._loop.call_soon_threadsafe(restore)

    def stop(self) -> None:
        """Close the port and every connection, and end the thread."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> None:
        """Pass bytes on until the connection ends; `back` is the way to where they came from."""
        while piece := await reader.read(PIECE):
            await self._flowing.wait()
            writer.write(piece)
            await writer.drain()

    async def _listen(self) -> asyncio.Server:
        self._flowing.set()
        return await asyncio.start_server(self._connected, self.host, 0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            there, onward = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, onward}
        ways = [
            asyncio.ensure_future(self.pump(reader, onward, writer)),
            asyncio.ensure_future(self.pump(there, writer, onward)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, onward):
                self._writers.discard(end)
                end.close()

    def _cut(self) -> None:
        self._is_cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        self._cut()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
