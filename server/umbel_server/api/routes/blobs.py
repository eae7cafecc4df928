"""Blobs: devices and administrators fetch and send them."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, nullcontext
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Send
from starlette.types import Scope as ASGIScope

from umbel.enrolment import BLOB_PATH, COMPLETE, OFFSET, UPLOAD_PATH, Access
from umbel.errors import UmbelError
from umbel.messages import Blob
from umbel_server import answers, moments
from umbel_server.api.access import Refused, Who, device_of, device_or, identity_of, number_of, server_of
from umbel_server.api.bodies import announced, counted
from umbel_server.api.documented import BYTES, gives_bytes, takes_bytes
from umbel_server.api.errors import refusal
from umbel_server.api.guarded import by, guarded, note
from umbel_server.api.scope import blob_in_scope, population_of_upload
from umbel_server.limits.daily_bytes import Moving
from umbel_server.server import Server
from umbel_server.storage.partial_uploads import Sender, TooLarge, WrongOffset

router = guarded("blobs")

Address = Annotated[str, "64 hex digits"]

ADMIN = "admin"
TOO_MANY = "the device has too many transfers at a time; this one is the oldest and was ended"
_RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{0,18})")


def upload_sender(request: Request, who: Who) -> Sender:
    """The sender of a request's upload; raises UploadNotAllowed when no open command of the device asks for it."""
    server = server_of(request)
    if who is not None:
        return server.upload_permission.sender(who.population, who.device, who.command)
    identity = identity_of(request)

    def sees(sha256: str) -> bool:
        return not identity.populations or any(server.ownership.owns(name, sha256) for name in identity.populations)

    folder = f"{ADMIN}/{identity.name}"
    return Sender(folder, server.blobs, server.most, bounded=False, population=population_of_upload(request), sees=sees)


Uploading = Annotated[Sender, Depends(upload_sender)]


class Download(StreamingResponse):
    """An answer with a blob's bytes, counted as they are sent; it ends when its device is barred or fetches too much at once."""

    def __init__(
        self, request: Request, population: str, chunks: Iterator[bytes], size: int, more: dict[str, str]
    ) -> None:
        server, who = server_of(request), device_of(request)
        self._server, self._who = server, who
        self._moving = server.quotas.moving(population, "down", size) if population else nullcontext(None)
        moving = self._moving.__enter__()
        headers = {"Content-Length": str(size), **more}
        status = 206 if "Content-Range" in more else 200
        super().__init__(_sent(server, who, moving, chunks), status, headers, BYTES)

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            if self._who is None:
                await super().__call__(scope, receive, send)
                return
            with self._server.transfers.one(self._who.population, self._who.device) as transfer:
                await super().__call__(scope, receive, send)
            if transfer.cancelled_caught:
                self._server.refusals.note(f"{self._who.population}/{self._who.device}", "transfers", TOO_MANY)
        finally:
            self._moving.__exit__(None, None, None)


def range_of(text: str, size: int) -> tuple[int, int] | None:
    """The bytes that a Range header asks for of `size` bytes, as (first, one after the last); None for all.

    A header that is not a single range of bytes is ignored (RFC 9110). The range is empty when it lies beyond the end.
    """
    wanted = _RANGE.fullmatch(text)
    if wanted is None:
        return None
    return int(wanted[1]), min(size, int(wanted[2]) + 1) if wanted[2] else size


def offset_of(text: str) -> int:
    """The number of bytes that an upload has sent before, by its header; raises UmbelError."""
    if (offset := number_of(text)) is None:
        raise UmbelError(f"{OFFSET} should be the number of bytes sent before, got {text[:40]!r}")
    return offset


@router.get(
    BLOB_PATH,
    dependencies=by(device_or("viewer")),
    responses=gives_bytes(BYTES, 206, 416),
    response_class=StreamingResponse,
)
def get_blob(request: Request, sha256: str) -> Response:
    """A blob's bytes; `Range: bytes=N-` resumes a broken download."""
    population = blob_in_scope(request, sha256)
    blobs = server_of(request).blobs
    size = blobs.size(sha256)
    headers = {"Accept-Ranges": "bytes", "ETag": f'"{sha256}"', "Cache-Control": "private, immutable, max-age=31536000"}
    if (wanted := range_of(request.headers.get("range", ""), size)) is None:
        return Download(request, population, blobs.read(sha256, 0, size), size, headers)
    start, stop = wanted
    if start >= size or stop <= start:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"}, media_type=BYTES)
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Download(request, population, blobs.read(sha256, start, stop), stop - start, headers)


@router.head(BLOB_PATH, dependencies=by(device_or("viewer")), response_class=Response)
def head_blob(request: Request, sha256: str) -> Response:
    """Whether a blob is stored, and its size."""
    blob_in_scope(request, sha256)
    return Response(headers={"Content-Length": str(server_of(request).blobs.size(sha256))})


@router.put(BLOB_PATH, dependencies=by(device_or("operator", "blob.put")), openapi_extra=takes_bytes())
async def put_blob(request: Request, sha256: Address, who: Who, sender: Uploading) -> answers.StoredBlob:
    """Store a blob sent from its first byte; bytes with another digest are refused and nothing is kept.

    An administrator's blob belongs to the query's `population` from then on. A device sends the blob that answers an open
    command. When a connection breaks, the received bytes are kept for at most a day; PATCH of the upload continues it.
    """
    blob = await _receive(request, who, sender, sha256, 0)
    note(request, blob.sha256, sender.population, size=blob.size)
    return answers.StoredBlob(blob.sha256, blob.size)


@router.head(UPLOAD_PATH, dependencies=by(device_or("operator")), status_code=204, response_class=Response)
async def head_upload(request: Request, sha256: Address, sender: Uploading) -> Response:
    """The progress of the sender's upload: `Upload-Offset` in bytes, `Upload-Complete: ?1` when the blob is stored."""
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
    """Continue an upload: the body is every byte from `Upload-Offset` on.

    Answers 409 with the right `Upload-Offset` when the server has another number of bytes; else as PUT of the blob.
    """
    offset = offset_of(request.headers.get(OFFSET, ""))
    try:
        blob = await _receive(request, who, sender, sha256, offset)
    except WrongOffset as error:
        return refusal(str(error), 409, headers={OFFSET: str(error.offset)})
    note(request, blob.sha256, sender.population, size=blob.size)
    return Response(status_code=204, headers={COMPLETE: "?1"})


async def _receive(request: Request, who: Access | None, sender: Sender, sha256: str, offset: int) -> Blob:
    """Receive an upload within the quota of the sender's population, and count the bytes that a device's upload leaves."""
    if who is None:
        return await _receive_within(request, who, sender, sha256, offset)
    received_blobs = server_of(request).received_blobs
    received_blobs.begin_upload(who.command)
    try:
        return await _receive_within(request, who, sender, sha256, offset)
    finally:
        try:
            await run_in_threadpool(received_blobs.count_unfinished, who.command)
        finally:
            received_blobs.remove_soon([who.command])  # its command may have ended meanwhile


async def _receive_within(request: Request, who: Access | None, sender: Sender, sha256: str, offset: int) -> Blob:
    server = server_of(request)
    size = announced(request, max(0, sender.most - offset))
    if offset + size > sender.most:
        raise TooLarge(
            f"this upload may have at most {sender.most} bytes, it has {offset + size}; do not send it again"
        )
    with ExitStack() as stack:
        moving = None
        if sender.population:
            await run_in_threadpool(stack.enter_context, server.quotas.storing(sender.population, offset + size))
            if who is not None or identity_of(request).populations:
                moving = stack.enter_context(server.quotas.moving(sender.population, "up", size))
        chunks = _noticed(counted(request.stream(), moving))
        if who is not None:
            return await _receive_of_device(server, who, sender, sha256, offset, chunks)
        if offset:
            blob = await server.uploads.receive(sender, sha256, offset, chunks)
        else:
            blob = await server.uploads.receive_once(sender, sha256, chunks)
        if sender.population:
            await run_in_threadpool(_claim, server, sender.population, blob)
        return blob


async def _receive_of_device(
    server: Server, who: Access, sender: Sender, sha256: str, offset: int, chunks: AsyncIterator[bytes]
) -> Blob:
    with server.transfers.one(who.population, who.device):
        return await server.uploads.receive(sender, sha256, offset, _while_admitted(server, who, chunks))
    raise Refused(TOO_MANY, 429)


def _claim(server: Server, population: str, blob: Blob) -> None:
    with server.database.transaction() as session:
        server.ownership.claim(session, population, blob)


async def _noticed(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks, and the moment after the first of them has been taken."""
    first = moments.watched()
    async for chunk in chunks:
        yield chunk
        if first and chunk:
            first = False
            await run_in_threadpool(moments.reached, "uploading")


def _sent(server: Server, who: Access | None, moving: Moving | None, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass the chunks on until the receiver is barred. Then break the connection, because the answer has begun."""
    for chunk in chunks:
        if who is not None:
            server.devices.known(who.population, who.device).check()
        if moving is not None:
            moving.moved(len(chunk))
        yield chunk


async def _while_admitted(server: Server, who: Access, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass the chunks on; raises Barred once the sender is suspended or revoked."""
    async for chunk in chunks:
        if (known := server.devices.remembered(who.population, who.device)) is None:
            known = await run_in_threadpool(server.devices.known, who.population, who.device)
        known.check()
        yield chunk
