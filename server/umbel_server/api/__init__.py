"""The HTTP API: blobs and enrolment for devices, everything else for administrators."""

from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from umbel import __version__
from umbel_server.api import errors
from umbel_server.api.documented import document
from umbel_server.api.routes import (
    admins,
    audit,
    blobs,
    commands,
    devices,
    enrolment,
    health,
    invitations,
    keys,
    plans,
    quotas,
    releases,
    runs,
)
from umbel_server.server import Server

NOUNS = (enrolment, invitations, blobs, health, devices, commands, plans, runs, releases, quotas, admins, audit, keys)
"""The modules with routes, in the order of the OpenAPI document."""


def make_app(server: Server) -> FastAPI:
    """Make the application. Every error is JSON with one sentence, {"error": "..."}, and a `code` that a device can act on."""
    app = _routes()
    app.state.server = server
    return app


def openapi() -> dict[str, Any]:
    """The OpenAPI document of the API; needs no running server."""
    return document(_routes())


def _routes() -> FastAPI:
    # A redirect would go to the address in the Host header, which the client chooses.
    app = FastAPI(title="Umbel", version=__version__, docs_url="/docs", redoc_url=None, redirect_slashes=False)
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    for noun in NOUNS:
        app.include_router(noun.router)
    for error in errors.ANSWERED:
        app.add_exception_handler(error, errors.answer)
    app.add_exception_handler(HTTPException, errors.no_route)
    app.add_exception_handler(ClientDisconnect, errors.client_gone)
    return app
