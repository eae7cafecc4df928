"""HTTP/1.1 with bounds on a client: size and time of a request's head, least speed of its body, time to read the answer.

uvicorn bounds none of these. Within the bounds uvicorn works as before.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from umbel_server.limits.bucket import RateLimit

log = logging.getLogger("umbel.server")

LINES, LINE_SECONDS = 10, 6.0
"""Per address: this many closed connections are logged at once, and after them one in LINE_SECONDS."""

FAREWELL_SECONDS = 0.3
"""Seconds that the end of an idle connection may take when the server stops. Its client does not read, so TLS would wait in
vain for the client's close message."""


@dataclass(frozen=True)
class Patience:
    """The bounds of a connection.

    A request's head may have `head_bytes`, and take `head_seconds` from its first byte. A new connection may wait as long
    for that byte. Of a body at least `body_bytes` must come in every `body_seconds` in which the server reads. A client
    that is answered before its body has come may send `after_bytes` more within `after_seconds`. When the buffers are full
    the client must read within `answer_seconds`.
    """

    head_bytes: int = 1 << 16
    head_seconds: float = 15.0
    body_bytes: int = 1024
    body_seconds: float = 30.0
    after_bytes: int = 1 << 20
    after_seconds: float = 5.0
    answer_seconds: float = 60.0


class BoundedHttp(HttpToolsProtocol):
    """One connection, closed with a logged reason when it exceeds a bound; the log is limited for each address."""

    def __init__(self, patience: Patience, lines: RateLimit, **made_by_uvicorn: Any) -> None:
        super().__init__(**made_by_uvicorn)
        self._patience, self._lines = patience, lines
        self._timer: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._in_head, self._in_body, self._answered = True, False, False
        self._came = 0
        """Received bytes: of the head, of the body since the last look, or after the answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit for a request's head."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel every timer."""
        self._expect_nothing()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes, because uvicorn keeps a head in memory until it is complete."""
        if self._in_head and self._came == 0:
            self._expect_head()
        self._came += len(data)
        super().data_received(data)
        if self._in_head and self._came > self._patience.head_bytes:
            self._refuse(f"the head of a request may have at most {self._patience.head_bytes} bytes")
        elif self._answered and self._came > self._patience.after_bytes:
            self._end("it still sends a request that was answered already")

    def on_headers_complete(self) -> None:
        """Start the regular look at the body's speed."""
        self._in_head, self._in_body, self._came = False, True, 0
        self._expect(self._patience.body_seconds, self._look)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is complete; the next byte begins another."""
        if self._answered:
            self._expect_head()
        else:
            self._expect_nothing()
        self._in_head, self._in_body, self._answered, self._came = True, False, False, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give a client that still sends an answered request a short time to end."""
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._answered, self._came = True, 0
            self._expect(
                self._patience.after_seconds, lambda: self._end("it still sends a request that was answered already")
            )

    def shutdown(self) -> None:
        """Close the connection because the server stops, after the request in progress if there is one."""
        super().shutdown()
        if self.transport.is_closing():
            self.loop.call_later(FAREWELL_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        """Start the time limit for reading, because the buffers are full."""
        super().pause_writing()
        self._stuck = self.loop.call_later(
            self._patience.answer_seconds, lambda: self._end("it does not read its answer")
        )

    def resume_writing(self) -> None:
        """The client reads again: cancel the time limit."""
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        super().resume_writing()

    def _look(self) -> None:
        if self._came < self._patience.body_bytes and not self.flow.read_paused:
            self._end(f"{self._came} bytes of its request came in {self._patience.body_seconds:g} s")
            return
        self._came = 0
        self._expect(self._patience.body_seconds, self._look)

    def _refuse(self, why: str) -> None:
        self._say(why)
        self._expect_nothing()
        self.send_400_response(why)

    def _end(self, why: str) -> None:
        self._say(why)
        self._expect_nothing()
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _say(self, why: str) -> None:
        address = self.client[0] if self.client else ""
        if self._lines.use(address):
            log.warning("closed a connection from %s: %s", address or "an unknown address", why)

    def _expect_head(self) -> None:
        seconds = self._patience.head_seconds
        self._expect(seconds, lambda: self._end(f"no request came in {seconds:g} s"))

    def _expect(self, seconds: float, otherwise: Callable[[], None]) -> None:
        self._expect_nothing()
        self._timer = self.loop.call_later(seconds, otherwise)

    def _expect_nothing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bounded(patience: Patience) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn, with these bounds."""
    lines = RateLimit(LINES, LINE_SECONDS, time.monotonic)
    return cast("type[asyncio.Protocol]", partial(BoundedHttp, patience, lines))
