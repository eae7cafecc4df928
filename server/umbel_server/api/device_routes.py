"""What devices ask of the server: to be enrolled, and blobs."""

import re
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from umbel.enrolment import BLOB_PATH, ENROL_PATH, EnrolmentReply, EnrolmentRequest
from umbel.errors import UmbelError
from umbel.signing import public_key
from umbel_server import moments
from umbel_server.api.access import require_device_or_admin, server_of

router = APIRouter(tags=["device"])

MAX_REQUEST = 1 << 16
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


async def body_of(request: Request, limit: int = MAX_REQUEST) -> bytes:
    """The request's body; raises UmbelError when it has more than `limit` bytes."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise UmbelError(f"the request's body may have at most {limit} bytes")
    return bytes(data)


@router.post(ENROL_PATH)
async def enrol(request: Request) -> Response:
    """Register a device by its public key."""
    server = server_of(request)
    server.devices.enrol(
        msgspec.json.decode(await body_of(request), type=EnrolmentRequest), server.state.enrolment_secret
    )
    mqtt = server.state.config.mqtt
    reply = EnrolmentReply(public_key(server.state.key), mqtt.advertised_host or mqtt.host, server.broker_port)
    return Response(msgspec.json.encode(reply), media_type="application/json")


@router.get(BLOB_PATH, dependencies=[Depends(require_device_or_admin)])
def get_blob(request: Request, sha256: str) -> StreamingResponse:
    """A blob's bytes; `Range: bytes=N-` resumes a broken download."""
    blobs = server_of(request).blobs
    size = blobs.size(sha256)
    headers = {"Accept-Ranges": "bytes", "ETag": f'"{sha256}"', "Cache-Control": "private, immutable, max-age=31536000"}
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if wanted is None:
        headers["Content-Length"] = str(size)
        return StreamingResponse(blobs.read(sha256, 0, size), 200, headers, "application/octet-stream")
    start = int(wanted[1])
    stop = min(size, int(wanted[2]) + 1) if wanted[2] else size
    if start >= size or stop <= start:
        return StreamingResponse(iter(()), 416, {"Content-Range": f"bytes */{size}"})
    headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{size}", "Content-Length": str(stop - start)}
    return StreamingResponse(blobs.read(sha256, start, stop), 206, headers, "application/octet-stream")


@router.head(BLOB_PATH, dependencies=[Depends(require_device_or_admin)])
def head_blob(request: Request, sha256: str) -> Response:
    """Whether a blob is stored, and its size."""
    return Response(headers={"Content-Length": str(server_of(request).blobs.size(sha256))})


@router.put(BLOB_PATH, dependencies=[Depends(require_device_or_admin)])
async def put_blob(request: Request, sha256: Annotated[str, "64 hex digits"]) -> dict[str, object]:
    """Store a blob; bytes with another digest are refused and nothing is kept."""
    blob = await server_of(request).blobs.receive(sha256, _noticed(request.stream()))
    return {"sha256": blob.sha256, "size": blob.size}


async def _noticed(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    first = True
    async for chunk in chunks:
        yield chunk
        if first and chunk:
            first = False
            await run_in_threadpool(moments.reached, "uploading")
