"""The server's signing keys: list them, rotate to a new one."""

from typing import Annotated

import msgspec
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from umbel_server import answers
from umbel_server.api.access import Asking, Refused, owner, server_of, viewer
from umbel_server.api.bodies import body_of
from umbel_server.api.documented import takes
from umbel_server.api.guarded import by, guarded, note

router = guarded("keys")


class RotationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new key that signs in `overlap` seconds, or at once with 0."""

    overlap: Annotated[float, msgspec.Meta(ge=0)]


@router.get("/v1/keys", dependencies=by(viewer()))
def list_keys(request: Request, who: Asking) -> list[answers.Key]:
    """List the server's signing keys, oldest first, with the number of the caller's devices that have confirmed the newest."""
    return server_of(request).rotation.describe(who.populations)


@router.post("/v1/keys/rotate", dependencies=by(owner("keys.rotate")), openapi_extra=takes(RotationRequest))
async def rotate(request: Request, who: Asking) -> list[answers.Key]:
    """Make a new signing key; the answer is as that of `GET /v1/keys`."""
    asked = msgspec.json.decode(await body_of(request), type=RotationRequest)
    note(request, overlap=round(asked.overlap))
    if who.populations:
        raise Refused(
            f"all populations share the signing key, so only an owner of all may rotate it; {who.name} is an owner of {who.scope}",
            403,
        )
    rotation = server_of(request).rotation
    await run_in_threadpool(rotation.rotate, asked.overlap)
    rows = await run_in_threadpool(rotation.describe)
    note(request, rows[-1].key)
    return rows
