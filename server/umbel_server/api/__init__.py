"""The HTTP API: blobs and enrolment for devices, everything else for administrators."""

from fastapi import FastAPI
from starlette.requests import ClientDisconnect

from umbel import __version__
from umbel_server.api import (
    admin_routes,
    device_routes,
    enrolment_routes,
    errors,
    lifecycle_routes,
    quota_routes,
    trust_routes,
)
from umbel_server.server import Server

ROUTERS = (
    enrolment_routes.router,
    device_routes.router,
    admin_routes.public,
    admin_routes.router,
    lifecycle_routes.router,
    quota_routes.router,
    trust_routes.router,
)


def make_app(server: Server) -> FastAPI:
    """The application; every error is JSON with one sentence: {"error": "..."}, and a `code` where a device acts on it."""
    app = FastAPI(title="Umbel", version=__version__, docs_url="/docs", redoc_url=None)
    app.state.server = server
    for router in ROUTERS:
        app.include_router(router)
    for error in errors.ANSWERED:
        app.add_exception_handler(error, errors.answer)
    app.add_exception_handler(ClientDisconnect, errors.client_gone)
    return app
