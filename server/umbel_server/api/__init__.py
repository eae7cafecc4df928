"""The HTTP API: blobs and enrolment for devices, everything else for administrators."""

from functools import partial

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from umbel import __version__
from umbel_server.api import errors
from umbel_server.api.documented import document
from umbel_server.api.routes import admins_and_audit as trust_routes
from umbel_server.api.routes import blobs as device_routes
from umbel_server.api.routes import commands as command_routes
from umbel_server.api.routes import enrolment as enrolment_routes
from umbel_server.api.routes import keys as key_routes
from umbel_server.api.routes import lifecycle as lifecycle_routes
from umbel_server.api.routes import quotas as quota_routes
from umbel_server.api.routes import runs as admin_routes
from umbel_server.server import Server

ROUTERS = (
    enrolment_routes.router,
    device_routes.router,
    admin_routes.public,
    admin_routes.router,
    command_routes.router,
    lifecycle_routes.router,
    quota_routes.router,
    trust_routes.router,
    key_routes.router,
)


def make_app(server: Server) -> FastAPI:
    """The application; every error is JSON with one sentence: {"error": "..."}, and a `code` where a device acts on it."""
    # A redirect would send whoever asks where its own Host header says.
    app = FastAPI(title="Umbel", version=__version__, docs_url="/docs", redoc_url=None, redirect_slashes=False)
    app.state.server = server
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    for router in ROUTERS:
        app.include_router(router)
    for error in errors.ANSWERED:
        app.add_exception_handler(error, errors.answer)
    app.add_exception_handler(HTTPException, errors.no_route)
    app.add_exception_handler(ClientDisconnect, errors.client_gone)
    return app
