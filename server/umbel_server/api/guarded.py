"""Guarded routes: each names its guard, and the audit log records each use that changes something."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, cast, get_type_hints

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from umbel.errors import UmbelError
from umbel_server.api.access import READS, Guard, Refused, address_of, bearer_of, device_of, server_of
from umbel_server.api.documented import JSON, gives, refusals
from umbel_server.api.errors import sentence_of
from umbel_server.security.admins import public_id
from umbel_server.security.audit.log import DONE, UNKNOWN


@dataclass
class Note:
    """The audit log's future entry for a request; the route adds what the path does not show.

    A request that has not `changed` anything, because it repeats an earlier one, is not recorded.
    """

    who: str = ""
    subject: str = ""
    population: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    changed: bool = True


def note(request: Request, subject: str = "", population: str = "", **detail: Any) -> Note:
    """Add details to this request's future entry in the audit log, and return the note. No secret belongs here."""
    noted = _noted(request)
    noted.subject, noted.population = subject or noted.subject, population or noted.population
    noted.detail |= detail
    return noted


class GuardedRoute(APIRoute):
    """A route with a guard among its dependencies; making it raises TypeError without one.

    Its endpoint returns a Response, or a struct of umbel_server.answers, or a list of these structs. Structs are documented
    and encoded as JSON.

    If the guard names an action then every use is recorded before the answer goes out, successful, failed or refused.
    A device's use of a route that it shares with administrators is not recorded.
    """

    guard: Guard

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        given = [*(options.get("dependencies") or ())]
        guards = [one.dependency for one in given if isinstance(one.dependency, Guard)]
        if len(guards) != 1:
            raise TypeError(f"{path}: expected one guard for this route, got {len(guards)}")
        self.guard = guards[0]
        methods = set(options.get("methods") or ())
        if not methods <= READS and not self.guard.action:
            raise TypeError(
                f"{path}: expected an action for the audit log, because this route changes something; got none"
            )
        documented = refusals(self.guard, methods) | (options.get("responses") or {})
        kind = get_type_hints(endpoint).get("return")
        if not (isinstance(kind, type) and issubclass(kind, Response)):
            documented |= gives(kind)
            endpoint = _encoded(endpoint)
        options |= {"responses": documented, "response_model": None}
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, followed by the entry in the audit log."""
        handle = super().get_route_handler()

        async def recorded(request: Request) -> Response:
            if not self.guard.is_recorded(request):
                return await _noted_of_device(request, handle)
            try:
                response = await handle(request)
            except asyncio.CancelledError:
                _record(request, self.guard.action, "the server ended before it had an answer")
                raise
            except Exception as error:
                await run_in_threadpool(
                    _record, request, self.guard.action, sentence_of(error), isinstance(error, Refused)
                )
                raise
            if not _noted(request).changed:
                return response
            outcome = DONE if response.status_code < 400 else f"answered with status {response.status_code}"
            await run_in_threadpool(_record, request, self.guard.action, outcome)
            return response

        return recorded


async def _noted_of_device(request: Request, handle: Callable[[Request], Coroutine[Any, Any, Response]]) -> Response:
    try:
        return await handle(request)
    except UmbelError as error:
        if (device := device_of(request)) is not None:
            server_of(request).refusals.note(f"{device.population}/{device.device}", "requests", str(error))
        raise


def _encoded(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an endpoint that returns a struct or a list of structs, so that it returns their JSON."""

    def response(answer: Any) -> Response:
        return Response(msgspec.json.encode(answer), media_type=JSON)

    if inspect.iscoroutinefunction(endpoint):

        @functools.wraps(endpoint)
        async def asked(*args: Any, **kwargs: Any) -> Response:
            return response(await endpoint(*args, **kwargs))

        return asked

    @functools.wraps(endpoint)
    def asked_in_thread(*args: Any, **kwargs: Any) -> Response:
        return response(endpoint(*args, **kwargs))

    return asked_in_thread


def guarded(*tags: str) -> APIRouter:
    """A router of guarded routes."""
    return APIRouter(tags=list(tags), route_class=GuardedRoute)


def by(guard: Guard) -> list[Any]:
    """The dependencies of a route that this guard is for."""
    return [Depends(guard)]


def _record(request: Request, action: str, outcome: str, refused: bool = False) -> None:
    noted, audit = _noted(request), server_of(request).audit
    path = request.path_params
    identity = getattr(request.state, "identity", None)
    who = noted.who or (identity.name if identity is not None else UNKNOWN)
    subject = noted.subject or path.get("device") or next(iter(path.values()), "")
    population = noted.population or path.get("population", "")
    if who == UNKNOWN:
        about = {"address": address_of(request), "token": public_id(bearer_of(request)), **noted.detail}
        audit.refused(who, action, subject, population, about, outcome)
    elif refused:
        audit.refused(who, action, subject, population, noted.detail, outcome)
    else:
        audit.append(who, action, subject, population, noted.detail, outcome)


def _noted(request: Request) -> Note:
    if not hasattr(request.state, "note"):
        request.state.note = Note()
    return cast(Note, request.state.note)
