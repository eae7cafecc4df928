"""HTTP/1.1 from whoever connects: how large and how slow the head of a request may be, how slowly its body may come, and
how slowly its answer may be taken.

uvicorn bounds none of these. What keeps to the bounds is uvicorn's as before.
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
"""Connections from one address whose end is logged at once; then one in so many seconds."""

FAREWELL_SECONDS = 0.3
"""How long the end of an idle connection may take when the server stops: who keeps one reads nothing that comes on it, so
that TLS would wait for his farewell in vain."""


@dataclass(frozen=True)
class Patience:
    """What the server waits for.

    A request's head - all before its body - may have `head_bytes` and take `head_seconds` from its first byte, and as long
    is waited for the first byte of a connection. Of a body `body_bytes` come in every `body_seconds` in which the server
    reads, or all that is left. Who was answered before all had come may send `after_bytes` more for `after_seconds`. An
    answer is taken on within `answer_seconds`, as far as the buffers are full.
    """

    head_bytes: int = 1 << 16
    head_seconds: float = 15.0
    body_bytes: int = 1024
    body_seconds: float = 30.0
    after_bytes: int = 1 << 20
    after_seconds: float = 5.0
    answer_seconds: float = 60.0


class BoundedHttp(HttpToolsProtocol):
    """One connection; it is closed when what comes is too much or too slow, and why is logged while that happens seldom."""

    def __init__(self, patience: Patience, lines: RateLimit, **made_by_uvicorn: Any) -> None:
        super().__init__(**made_by_uvicorn)
        self._patience, self._lines = patience, lines
        self._timer: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._in_head, self._in_body, self._answered = True, False, False
        self._came = 0
        """Bytes of the head, of the body since it was last looked at, or of what comes after the answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, not for ever."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing."""
        self._expect_nothing()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes: a head is kept in memory until it is whole."""
        if self._in_head and self._came == 0:
            self._expect_head()
        self._came += len(data)
        super().data_received(data)
        if self._in_head and self._came > self._patience.head_bytes:
            self._refuse(f"the head of a request may have at most {self._patience.head_bytes} bytes")
        elif self._answered and self._came > self._patience.after_bytes:
            self._end("it goes on sending what was answered already")

    def on_headers_complete(self) -> None:
        """Look now and then how the body comes on."""
        self._in_head, self._in_body, self._came = False, True, 0
        self._expect(self._patience.body_seconds, self._look)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request has come whole; the next byte begins another."""
        if self._answered:
            self._expect_head()
        else:
            self._expect_nothing()
        self._in_head, self._in_body, self._answered, self._came = True, False, False, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Who still sends what was answered already ends soon."""
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._answered, self._came = True, 0
            self._expect(
                self._patience.after_seconds, lambda: self._end("it goes on sending what was answered already")
            )

    def shutdown(self) -> None:
        """The server stops: end the connection, or else its request at hand is the last."""
        super().shutdown()
        if self.transport.is_closing():
            self.loop.call_later(FAREWELL_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        """The buffers are full: the answer must be taken on soon."""
        super().pause_writing()
        self._stuck = self.loop.call_later(
            self._patience.answer_seconds, lambda: self._end("it does not take its answer")
        )

    def resume_writing(self) -> None:
        """The answer is being taken."""
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
    """What uvicorn makes of every connection."""
    lines = RateLimit(LINES, LINE_SECONDS, time.monotonic)
    return cast("type[asyncio.Protocol]", partial(BoundedHttp, patience, lines))
