"""What went wrong, as an HTTP status and one sentence: the same in the answer and in the audit log."""

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
"""Characters of a path that an answer repeats."""

ANSWERED = (UmbelError, *NOT_DECODED, RequestValidationError, DataError)
"""Errors that get an answer of one sentence; any other is a mistake of ours."""


class UnknownPopulation(UmbelError):
    """A population that is not one of the administrator's."""


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
    """The answer to a request for which there is no route, or not with its method."""
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {cut(request.url.path, SHOWN)}"
    sentence = {404: f"there is no {asked} here", 405: f"{asked} is not possible"}.get(error.status_code, error.detail)
    return refusal(f"{sentence}; /docs lists what is", error.status_code, headers=error.headers)


async def client_gone(_request: Request, _error: Exception) -> Response:
    """Links break: that is no error of ours, and nobody reads the answer."""
    return Response(status_code=400)


def sentence_of(error: BaseException) -> str:
    """What went wrong, in one sentence."""
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
            return "the request holds what the database does not take: a NUL character, or a text or number that is too large"
        case ClientDisconnect():
            return "the connection broke before the request had come"
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
