"""Request bodies: read into memory, or counted chunk by chunk."""

from collections.abc import AsyncIterator

from fastapi import Request

from umbel.errors import UmbelError
from umbel_server.api.access import check_body, number_of, server_of
from umbel_server.limits.daily_bytes import Moving


async def body_of(request: Request) -> bytes:
    """The request's body. Raises UmbelError above the size in [limits], Refused when a device signed another body."""
    limit = server_of(request).state.config.limits.request_kb * 1000
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise UmbelError(f"the request's body may have at most {limit} bytes")
    body = bytes(data)
    check_body(request, body)
    return body


def announced(request: Request, most: int) -> int:
    """The size of a request's body by its Content-Length, in bytes; `most` without that header."""
    length = number_of(request.headers.get("content-length", ""))
    return most if length is None else length


async def counted(chunks: AsyncIterator[bytes], moving: Moving | None) -> AsyncIterator[bytes]:
    """Pass the chunks on, and count the bytes of each."""
    async for chunk in chunks:
        if moving is not None:
            moving.moved(len(chunk))
        yield chunk
