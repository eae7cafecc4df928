"""Administrators: add, list and revoke them."""

from typing import Annotated

import msgspec
from fastapi import Request
from msgspec.structs import asdict
from starlette.concurrency import run_in_threadpool

from umbel_server import answers
from umbel_server.api.access import Asking, owner, server_of
from umbel_server.api.bodies import body_of
from umbel_server.api.documented import takes
from umbel_server.api.guarded import by, guarded, note
from umbel_server.security import admins
from umbel_server.security.admins import Role

router = guarded("admins")

LONGEST = 10 * 365 * 86_400.0
"""The longest lifetime of a token that expires, in seconds."""
MOST_POPULATIONS = 100


class AdminRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An administrator to add: for some populations or all, and for `expires_in` seconds or (0) for ever."""

    name: str
    role: Role
    populations: Annotated[list[str], msgspec.Meta(max_length=MOST_POPULATIONS)] = []
    expires_in: Annotated[float, msgspec.Meta(ge=0, le=LONGEST)] = 0.0


@router.post("/v1/admins", dependencies=by(owner("admin.add")), openapi_extra=takes(AdminRequest))
async def add_admin(request: Request, who: Asking) -> answers.NewAdmin:
    """Add an administrator; `token` in the answer is shown this once."""
    wanted = msgspec.json.decode(await body_of(request), type=AdminRequest)
    note(request, wanted.name, role=wanted.role, populations=wanted.populations or "all")
    row, token = await run_in_threadpool(
        server_of(request).admins.add, who, wanted.name, wanted.role, wanted.populations, wanted.expires_in
    )
    note(request, token=row.id, expires=round(row.expires))
    return answers.NewAdmin(**asdict(admins.describe(row)), token=token)


@router.get("/v1/admins", dependencies=by(owner()))
def list_admins(request: Request, who: Asking) -> list[answers.Admin]:
    """List the administrators by name, the revoked and expired ones included."""
    return [admins.describe(row) for row in server_of(request).admins.list(who)]


@router.post("/v1/admins/{name}/revoke", dependencies=by(owner("admin.revoke")))
def revoke_admin(request: Request, who: Asking, name: str) -> answers.Admin:
    """End an administrator's token at once."""
    row = server_of(request).admins.revoke(who, name)
    note(request, row.name, token=row.id)
    return admins.describe(row)
