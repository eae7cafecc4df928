"""Every answer of an application against its OpenAPI document: its status, its content type, and the schema of its JSON."""

import functools
from typing import Any

import jsonschema_rs
import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from umbel_server.api import openapi

ERROR = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
NO_ROUTE = {"responses": {"404": ERROR, "405": ERROR}}
"""The answers to a request for which there is no route."""


class DocumentedAnswers:
    """An ASGI application; `wrong` lists the answers that its document does not name, each in one sentence."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.wrong: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer: dict[str, Any] = {"body": b""}

        async def seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
                answer.update(status=message["status"], type=headers.get("content-type", ""))
            elif answer["type"] == "application/json":
                answer["body"] += message.get("body", b"")
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self._check(scope, **answer)
            await send(message)

        await self._app(scope, receive, seen)

    def _check(self, scope: Scope, status: int, type: str, body: bytes) -> None:
        asked = f"{scope['method']} {scope['path'][:100]}"
        if (fault := fault_of(scope, status, type, body)) is not None:
            self.wrong.append(f"{asked}: {status} {type}: {fault}; {body[:500]!r}")


def fault_of(scope: Scope, status: int, type: str, body: bytes) -> str | None:
    """What is wrong with an answer, None when nothing is."""
    path, method = getattr(scope.get("route"), "path", ""), scope["method"].lower()
    if scope["path"] in ("/docs", "/openapi.json"):
        return None
    operation = openapi_document()["paths"].get(path, {}).get(method, NO_ROUTE)
    named = operation["responses"].get(str(status))
    if named is None:
        return "the document does not name this status"
    if method == "head":
        return None  # it has no content, but the Content-Type that GET's answer would have (RFC 9110, section 9.3.2)
    if not type:  # no content, or nobody is there any more to read it
        return None if not named.get("content") or status == 400 else "the document names a content"
    if type not in named.get("content", {}):
        return "the document does not name this content type"
    if type != "application/json":
        return None
    found = next(
        validator(msgspec.json.encode(named["content"][type]["schema"])).iter_errors(msgspec.json.decode(body)), None
    )
    return f"{found.message} at {found.instance_path}" if found is not None else None


@functools.cache
def openapi_document() -> dict[str, Any]:
    """The document of the API."""
    return openapi()


@functools.cache
def validator(schema: bytes) -> Any:
    """What validates against a schema of the document, given as JSON."""
    components = {"components": openapi_document()["components"]}
    return jsonschema_rs.validator_for({**msgspec.json.decode(schema), **components})
