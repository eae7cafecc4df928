"""Whether the server is well."""

from typing import Any

from fastapi import Request

from umbel_server.api.access import everybody, server_of
from umbel_server.api.guarded import by, guarded

router = guarded("server")


@router.get("/v1/health", dependencies=by(everybody()))
async def health(request: Request) -> dict[str, Any]:
    """Whether the server answers, and whether it has its broker: at once, also when every thread waits for the database."""
    return {"ok": True, "broker": server_of(request).exchange.is_up}
