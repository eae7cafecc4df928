"""Errors as an HTTP status and one sentence; the answer and the audit log have the same sentence."""

import math
from collections.abc import Mapping

import msgspec
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from umbel.errors import NOT_DECODED, SignatureError, UmbelError
from umbel.sizes import cut
from umbel_server import answers
from umbel_server.api.access import Refused
from umbel_server.commands.outbox import UnknownCommand
from umbel_server.commands.upload_permission import UploadNotAllowed
from umbel_server.devices.invitations import UnknownInvitation
from umbel_server.devices.register import Barred, UnknownDevice
from umbel_server.limits.daily_bytes import QuotaReached
from umbel_server.models.releases import UnknownRelease
from umbel_server.runs.stored_runs import UnknownRun
from umbel_server.security.admins import UnknownAdmin
from umbel_server.security.audit.log import NotRecorded
from umbel_server.storage.blobs import BlobError, MissingBlob
from umbel_server.storage.partial_uploads import StoreFull, TooLarge

SHOWN = 100
"""The most characters of a path that an answer repeats."""

ANSWERED = (UmbelError, *NOT_DECODED, RequestValidationError, DataError)
"""Errors that are answered with one sentence; any other error is a bug of the server."""


class UnknownPopulation(UmbelError):
    """The administrator may not see the population."""


def refusal(sentence: str, status: int, code: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says in one sentence why a request was refused."""
    body = msgspec.json.encode(answers.Error(sentence, code))
    return Response(body, status, headers, media_type="application/json")


async def answer(_request: Request, error: Exception) -> Response:
    """The answer to a request that raised an error."""
    code = error.code if isinstance(error, Refused) else error.state if isinstance(error, Barred) else ""
    wait = error.retry_after if isinstance(error, Refused | QuotaReached) else 0.0
    headers = {"Retry-After": str(math.ceil(wait))} if wait else None
    return refusal(sentence_of(error), _status(error), code, headers)


async def no_route(request: Request, error: Exception) -> Response:
    """The answer to a request with an unknown path or method."""
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {cut(request.url.path, SHOWN)}"
    sentence = {404: f"no such route: {asked}", 405: f"this route has no such method: {asked}"}.get(
        error.status_code, error.detail
    )
    return refusal(f"{sentence}; /docs lists the routes", error.status_code, headers=error.headers)


async def client_gone(_request: Request, _error: Exception) -> Response:
    """End a request whose client has disconnected. It is no error of the server, and no client reads the answer."""
    return Response(status_code=400)


def sentence_of(error: BaseException) -> str:
    """An error in one sentence."""
    match error:
        case UmbelError():
            return str(error)
        case msgspec.DecodeError() | UnicodeDecodeError() | RecursionError():
            return f"the request does not parse: {error}"
        case RequestValidationError():
            wrong = error.errors()[0]
            name, value = wrong["loc"][-1], str(wrong.get("input", ""))[:40]
            return f"{name}: {wrong['msg']}, got {value!r}"
        case DataError():
            return (
                "the database cannot store the request: it holds a NUL character, or a text or number that is too large"
            )
        case ClientDisconnect():
            return "the connection broke before the whole request had come"
    return f"the server failed ({type(error).__name__}); its log has the details"


def _status(error: Exception) -> int:
    match error:
        case Refused() | QuotaReached():
            return error.status
        case SignatureError() | UploadNotAllowed() | Barred():
            return 403
        case (
            UnknownDevice()
            | UnknownRun()
            | UnknownCommand()
            | UnknownRelease()
            | UnknownAdmin()
            | UnknownPopulation()
            | UnknownInvitation()
            | MissingBlob()
        ):
            return 404
        case NotRecorded():
            return 503
        case StoreFull():
            return 507
        case TooLarge():
            return 413
        case BlobError() | RequestValidationError():
            return 422
    return 400
