"""What devices ask of the server: blobs."""

import re
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from umbel.enrolment import BLOB_PATH, COMPLETE, OFFSET, UPLOAD_PATH, Access
from umbel.errors import UmbelError
from umbel.messages import Blob
from umbel_server import moments
from umbel_server.api.access import Who, device_or, server_of
from umbel_server.api.documented import BYTES, gives_bytes, takes_bytes
from umbel_server.api.guarded import by, guarded, note
from umbel_server.server import Server
from umbel_server.uploads import Sender, WrongOffset

router = guarded("device")

Address = Annotated[str, "64 hex digits"]

MAX_REQUEST = 1 << 16
ADMIN = "admin"
_RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{0,18})")


def sender_of(request: Request, who: Who) -> Sender:
    """Who uploads; raises NotAwaited when no open command of the device waits for it."""
    server = server_of(request)
    if who is None:
        return Sender(ADMIN, server.blobs, server.most, bounded=False)
    return server.awaited.sender(who.population, who.device, who.command)


Uploading = Annotated[Sender, Depends(sender_of)]


async def body_of(request: Request, limit: int = MAX_REQUEST) -> bytes:
    """The request's body; raises UmbelError when it has more than `limit` bytes."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise UmbelError(f"the request's body may have at most {limit} bytes")
    return bytes(data)


def range_of(text: str, size: int) -> tuple[int, int] | None:
    """The first byte and the one after the last that a Range header asks for of `size` bytes; None for all.

    What is no single range of bytes is ignored, as RFC 9110 has it. The range is empty when there are no such bytes.
    """
    wanted = _RANGE.fullmatch(text)
    if wanted is None:
        return None
    return int(wanted[1]), min(size, int(wanted[2]) + 1) if wanted[2] else size


def offset_of(text: str) -> int:
    """The bytes of an upload that have come before, as its header says; raises UmbelError."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise UmbelError(f"{OFFSET} should be the number of bytes sent before, got {text[:40]!r}")
    return int(text)


@router.get(
    BLOB_PATH,
    dependencies=by(device_or("viewer")),
    responses=gives_bytes(BYTES, 206, 416),
    response_class=StreamingResponse,
)
def get_blob(request: Request, sha256: str, who: Who) -> StreamingResponse:
    """A blob's bytes; `Range: bytes=N-` resumes a broken download."""
    server = server_of(request)
    blobs = server.blobs
    size = blobs.size(sha256)
    headers = {"Accept-Ranges": "bytes", "ETag": f'"{sha256}"', "Cache-Control": "private, immutable, max-age=31536000"}
    if (wanted := range_of(request.headers.get("range", ""), size)) is None:
        headers["Content-Length"] = str(size)
        chunks = _sent(server, who, blobs.read(sha256, 0, size))
        return StreamingResponse(chunks, 200, headers, BYTES)
    start, stop = wanted
    if start >= size or stop <= start:
        return StreamingResponse(iter(()), 416, {"Content-Range": f"bytes */{size}"}, BYTES)
    headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{size}", "Content-Length": str(stop - start)}
    chunks = _sent(server, who, blobs.read(sha256, start, stop))
    return StreamingResponse(chunks, 206, headers, BYTES)


@router.head(BLOB_PATH, dependencies=by(device_or("viewer")), response_class=Response)
def head_blob(request: Request, sha256: str) -> Response:
    """Whether a blob is stored, and its size."""
    return Response(headers={"Content-Length": str(server_of(request).blobs.size(sha256))})


@router.put(BLOB_PATH, dependencies=by(device_or("operator", "blob.put")), openapi_extra=takes_bytes())
async def put_blob(request: Request, sha256: Address, who: Who, sender: Uploading) -> dict[str, object]:
    """Store a blob sent from its first byte; bytes with another digest are refused and nothing is kept.

    A device sends the blob that answers an open command. When its connection breaks, what arrived is kept, a day at most,
    for it to go on with PATCH of the upload.
    """
    if who is None:
        blob = await server_of(request).uploads.receive_once(sender, sha256, request.stream())
        note(request, blob.sha256, size=blob.size)
    else:
        blob = await _receive(request, who, sender, sha256, 0)
    return {"sha256": blob.sha256, "size": blob.size}


@router.head(UPLOAD_PATH, dependencies=by(device_or("operator")), status_code=204, response_class=Response)
async def head_upload(request: Request, sha256: Address, sender: Uploading) -> Response:
    """How far the sender's upload has come: `Upload-Offset` in bytes, `Upload-Complete: ?1` when the blob is stored."""
    offset, complete = await server_of(request).uploads.offset(sender, sha256)
    headers = {OFFSET: str(offset), COMPLETE: "?1" if complete else "?0", "Cache-Control": "no-store"}
    return Response(status_code=204, headers=headers)


@router.patch(
    UPLOAD_PATH,
    dependencies=by(device_or("operator", "blob.put")),
    openapi_extra=takes_bytes("application/partial-upload"),
    status_code=204,
    response_class=Response,
)
async def patch_upload(request: Request, sha256: Address, who: Who, sender: Uploading) -> Response:
    """Go on with an upload: the body is every byte from `Upload-Offset` on.

    409 with the right `Upload-Offset` when the server has another number of bytes; as PUT of the blob otherwise.
    """
    offset = offset_of(request.headers.get(OFFSET, ""))
    try:
        await _receive(request, who, sender, sha256, offset)
    except WrongOffset as error:
        return JSONResponse({"error": str(error)}, 409, {OFFSET: str(error.offset)})
    return Response(status_code=204, headers={COMPLETE: "?1"})


async def _receive(request: Request, who: Access | None, sender: Sender, sha256: str, offset: int) -> Blob:
    """Take in what a device sends, and remove it if the command that it answers ended meanwhile."""
    server = server_of(request)
    try:
        chunks = _noticed(request.stream())
        if who is not None:
            chunks = _while_admitted(server, who, chunks)
        return await server.uploads.receive(sender, sha256, offset, chunks)
    finally:
        if who is not None:
            server.received.tidy([who.command])


async def _noticed(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks, and the moment after the first of them has been taken."""
    first = moments.watched()
    async for chunk in chunks:
        yield chunk
        if first and chunk:
            first = False
            await run_in_threadpool(moments.reached, "uploading")


def _sent(server: Server, who: Access | None, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks, until their receiver is suspended or revoked; then its connection breaks, as the answer has begun."""
    for chunk in chunks:
        if who is not None:
            server.devices.known(who.population, who.device).check()
        yield chunk


async def _while_admitted(server: Server, who: Access, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks, until their sender is suspended or revoked; then raises Barred."""
    async for chunk in chunks:
        if (known := server.devices.remembered(who.population, who.device)) is None:
            known = await run_in_threadpool(server.devices.known, who.population, who.device)
        known.check()
        yield chunk
