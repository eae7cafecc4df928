"""The health of the server."""

from fastapi import Request

from umbel_server import answers
from umbel_server.api.access import everybody, server_of
from umbel_server.api.guarded import by, guarded

router = guarded("server")


@router.get("/v1/health", dependencies=by(everybody()))
async def health(request: Request) -> answers.Health:
    """Show whether the server is connected to its broker; it answers even while the database is locked."""
    server = server_of(request)
    return answers.Health(True, server.exchange.is_up, server.problem)
