"""The bodies of requests: read whole, or counted as they come."""

from collections.abc import AsyncIterator

from fastapi import Request

from umbel.errors import UmbelError
from umbel_server.api.access import check_body, number_of, server_of
from umbel_server.limits.daily_bytes import Moving


async def body_of(request: Request) -> bytes:
    """The request's body; raises UmbelError when it has more bytes than [limits] allow, Refused when a device signed another."""
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
    """How many bytes a request's body has; `most` when it does not say."""
    length = number_of(request.headers.get("content-length", ""))
    return most if length is None else length


async def counted(chunks: AsyncIterator[bytes], moving: Moving | None) -> AsyncIterator[bytes]:
    """The chunks, each counted as it comes."""
    async for chunk in chunks:
        if moving is not None:
            moving.moved(len(chunk))
        yield chunk
