"""What the OpenAPI document says of a route beyond its parameters: what it takes, what it gives, how it refuses.

FastAPI knows the parameters; bodies are decoded by msgspec, and refusals are made in umbel_server.api.errors.
"""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from umbel_server.api.access import Guard

REF = "#/components/schemas/{name}"
TOKEN = "token"  # noqa: S105
BYTES = "application/octet-stream"

_bodies: dict[str, type[msgspec.Struct]] = {}


class Error(msgspec.Struct, omit_defaults=True):
    """Why a request was refused, in one sentence; a `code` where a device acts on it."""

    error: str
    code: str = ""


def takes(kind: type[msgspec.Struct], required: bool = True) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body is JSON."""
    _bodies[kind.__name__] = kind
    schema = {"$ref": REF.format(name=kind.__name__)}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def takes_bytes(media: str = BYTES) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body is no JSON."""
    schema = {"type": "string", "format": "binary"}
    return {"requestBody": {"required": True, "content": {media: {"schema": schema}}}}


def gives_bytes(media: str = BYTES, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with bytes, also with these statuses."""
    content = {media: {"schema": {"type": "string", "format": "binary"}}}
    return {status: {"description": "The bytes", "content": content} for status in (200, *statuses)}


def refusals(guard: Guard, methods: set[str]) -> dict[int | str, dict[str, Any]]:
    """How a route may refuse: always with an Error."""
    found = {
        400: "The request makes no sense",
        404: "There is no such thing, or not for who asks",
        405: "Not with this method",
        422: "A parameter, or bytes, that are not what they should be",
        429: "Too many; ask again later",
        503: "It cannot be recorded now",
    }
    if guard.role is not None or guard.action:
        found[403] = "Who asks may not do this"
    if guard.role is not None:
        found[401] = "The token is nobody's, or over"
    if methods & {"POST", "PUT", "PATCH", "DELETE"}:
        found |= {409: "Not in this state", 413: "Too many bytes", 507: "No room"}
    content = {"application/json": {"schema": {"$ref": REF.format(name=Error.__name__)}}}
    if methods == {"HEAD"}:
        return {status: {"description": sentence} for status, sentence in sorted(found.items())}
    return {status: {"description": sentence, "content": content} for status, sentence in sorted(found.items())}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document; made once."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, schemas = msgspec.json.schema_components([Error, *_bodies.values()], ref_template=REF)
        components = made.setdefault("components", {})
        components["schemas"] = components.get("schemas", {}) | schemas
        components["securitySchemes"] = {
            TOKEN: {
                "type": "http",
                "scheme": "bearer",
                "description": "An administrator's token, or a device's signed one",
            }
        }
        for operations in made["paths"].values():
            for operation in operations.values():
                if "401" in operation["responses"]:
                    operation["security"] = [{TOKEN: []}]
        app.openapi_schema = made
    return app.openapi_schema
