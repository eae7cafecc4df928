"""The HTTP API: blobs and enrolment for devices, everything else for administrators."""

from typing import cast

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from umbel import __version__
from umbel.errors import SignatureError, UmbelError
from umbel_server.api import admin_routes, device_routes, enrolment_routes, lifecycle_routes
from umbel_server.api.access import Refused
from umbel_server.awaited import NotAwaited
from umbel_server.blobs import BlobError, MissingBlob
from umbel_server.devices import Barred, UnknownDevice
from umbel_server.runs import UnknownRun
from umbel_server.server import Server
from umbel_server.uploads import StoreFull, TooLarge


def make_app(server: Server) -> FastAPI:
    """The application; every error is JSON with one sentence: {"error": "..."}, and a `code` where a device acts on it."""
    app = FastAPI(title="Umbel", version=__version__, docs_url="/docs", redoc_url=None)
    app.state.server = server
    app.include_router(enrolment_routes.public)
    app.include_router(device_routes.router)
    app.include_router(admin_routes.public)
    app.include_router(admin_routes.router)
    app.include_router(enrolment_routes.router)
    app.include_router(lifecycle_routes.router)
    app.add_exception_handler(UmbelError, _umbel_error)
    app.add_exception_handler(msgspec.DecodeError, _decode_error)
    app.add_exception_handler(RequestValidationError, _parameter_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    return app


async def _umbel_error(_request: Request, error: Exception) -> JSONResponse:
    code = ""
    match error:
        case Refused():
            status, code = error.status, error.code
        case Barred():
            status, code = 403, error.state
        case SignatureError() | NotAwaited():
            status = 403
        case UnknownDevice() | UnknownRun() | MissingBlob():
            status = 404
        case StoreFull():
            status = 507
        case TooLarge():
            status = 413
        case BlobError():
            status = 422
        case _:
            status = 400
    return JSONResponse({"error": str(error)} | ({"code": code} if code else {}), status)


async def _decode_error(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": f"the request does not parse: {cast(msgspec.DecodeError, error)}"}, 400)


async def _parameter_error(_request: Request, error: Exception) -> JSONResponse:
    wrong = cast(RequestValidationError, error).errors()[0]
    name, value = wrong["loc"][-1], str(wrong.get("input", ""))[:40]
    return JSONResponse({"error": f"{name}: {wrong['msg']}, got {value!r}"}, 422)


async def _client_gone(_request: Request, _error: Exception) -> Response:
    """Links break: that is no error of ours, and nobody reads the answer."""
    return Response(status_code=400)
