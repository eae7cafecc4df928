"""Who may do what, and who did what: administrators and the audit log."""

from typing import Annotated, Any

import msgspec
from fastapi import Query, Request
from starlette.concurrency import run_in_threadpool

from umbel_server.api.access import Asking, owner, server_of, viewer
from umbel_server.api.documented import takes
from umbel_server.api.guarded import by, guarded, note
from umbel_server.api.routes.blobs import body_of
from umbel_server.security import admins
from umbel_server.security.admins import Role

router = guarded("trust")

LONGEST = 10 * 365 * 86_400.0
"""Seconds that a token may be good for, unless it is for ever."""
MOST_POPULATIONS, MOST_ENTRIES = 100, 10_000


class AdminRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An administrator to add: for some populations or all, and for `expires_in` seconds or (0) for ever."""

    name: str
    role: Role
    populations: Annotated[list[str], msgspec.Meta(max_length=MOST_POPULATIONS)] = []
    expires_in: Annotated[float, msgspec.Meta(ge=0, le=LONGEST)] = 0.0


@router.post("/v1/admins", dependencies=by(owner("admin.add")), openapi_extra=takes(AdminRequest))
async def add_admin(request: Request, who: Asking) -> dict[str, Any]:
    """Add an administrator; `token` in the answer is shown this once."""
    wanted = msgspec.json.decode(await body_of(request), type=AdminRequest)
    note(request, wanted.name, role=wanted.role, populations=wanted.populations or "all")
    row, token = await run_in_threadpool(
        server_of(request).admins.add, who, wanted.name, wanted.role, wanted.populations, wanted.expires_in
    )
    note(request, token=row.id, expires=round(row.expires))
    return {**admins.describe(row), "token": token}


@router.get("/v1/admins", dependencies=by(owner()))
def list_admins(request: Request, who: Asking) -> list[dict[str, Any]]:
    """Every administrator, also those who are revoked or whose time is over, by name."""
    return [admins.describe(row) for row in server_of(request).admins.list(who)]


@router.post("/v1/admins/{name}/revoke", dependencies=by(owner("admin.revoke")))
def revoke_admin(request: Request, who: Asking, name: str) -> dict[str, Any]:
    """End an administrator's token at once."""
    row = server_of(request).admins.revoke(who, name)
    note(request, row.name, token=row.id)
    return admins.describe(row)


@router.get("/v1/audit", dependencies=by(viewer()))
def list_audit(
    request: Request,
    asking: Asking,
    within: Annotated[float | None, Query(gt=0, le=1e9)] = None,
    who: Annotated[str, Query(max_length=160)] = "",
    limit: Annotated[int, Query(ge=1, le=MOST_ENTRIES)] = 100,
) -> list[dict[str, Any]]:
    """The newest entries of the audit log, newest first: of the last `within` seconds, by `who`.

    An administrator for some populations sees what was done to these.
    """
    server = server_of(request)
    since = 0.0 if within is None else server.clock() - within
    return server.audit.list(since, who, limit, asking.populations)


@router.get("/v1/audit/verify", dependencies=by(viewer()))
def verify_audit(request: Request) -> dict[str, Any]:
    """Whether the audit log is whole: `entries` that are, the last one's `hash`, and the `fault` after it or ""."""
    head, fault = server_of(request).audit.verify()
    return {"entries": head.count, "hash": head.hash, "fault": fault.sentence if fault is not None else ""}
