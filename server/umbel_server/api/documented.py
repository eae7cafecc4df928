"""The OpenAPI document, with what FastAPI cannot see in a route: its JSON bodies, its answers and its refusals.

Bodies and answers are msgspec structs, whose JSON Schema msgspec writes.
"""

from typing import Any, get_args, get_origin

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from umbel_server.answers import Error
from umbel_server.api.access import Guard

REF = "#/components/schemas/{name}"
TOKEN = "token"  # noqa: S105
JSON, BYTES = "application/json", "application/octet-stream"

_components: dict[str, Any] = {}
"""The schemas of all structs that a route takes or gives, by name."""


def schema_of(kind: Any) -> dict[str, Any]:
    """The schema of a JSON body; structs in it are references. Raises TypeError on two structs of one name."""
    (schema,), components = msgspec.json.schema_components([kind], ref_template=REF)
    for name, component in components.items():
        if _components.setdefault(name, component) != component:
            raise TypeError(f"expected one struct named {name} in bodies and answers, got two; rename one of them")
    return schema


def takes(kind: type[msgspec.Struct], required: bool = True) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes JSON."""
    return {"requestBody": {"required": required, "content": {JSON: {"schema": schema_of(kind)}}}}


def takes_bytes(media: str = BYTES) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes bytes."""
    schema = {"type": "string", "format": "binary"}
    return {"requestBody": {"required": True, "content": {media: {"schema": schema}}}}


def gives(kind: Any) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with a struct, or a list of structs, as JSON; raises TypeError on others."""
    item = get_args(kind)[0] if get_origin(kind) is list else kind
    if not (isinstance(item, type) and issubclass(item, msgspec.Struct)):
        raise TypeError(f"expected a route that returns a struct, a list of structs, or a Response, got {kind}")
    return {200: {"description": "OK", "content": {JSON: {"schema": schema_of(kind)}}}}


def gives_bytes(media: str = BYTES, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with bytes, also with these statuses."""
    content = {media: {"schema": {"type": "string", "format": "binary"}}}
    return {status: {"description": "The bytes", "content": content} for status in (200, *statuses)}


def refusals(guard: Guard, methods: set[str]) -> dict[int | str, dict[str, Any]]:
    """The `responses` for the refusals of a route, each with an Error."""
    found = {
        400: "The request cannot be carried out as it is",
        404: "Not found, or not visible to the caller",
        405: "The route does not have this method",
        422: "A parameter or the sent bytes are invalid",
        429: "Too many requests; try again later",
        503: "The audit log cannot be written now; try again later",
    }
    if guard.role is not None or guard.action:
        found[403] = "The caller may not do this"
    if guard.role is not None:
        found[401] = "The token is unknown or expired"
    if methods & {"POST", "PUT", "PATCH", "DELETE"}:
        found |= {
            409: "The state on the server is another one",
            413: "The body is too large",
            507: "The storage is full",
        }
    if methods == {"HEAD"}:
        return {status: {"description": sentence} for status, sentence in sorted(found.items())}
    content = {JSON: {"schema": schema_of(Error)}}
    return {status: {"description": sentence, "content": content} for status, sentence in sorted(found.items())}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document; made once."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = made.setdefault("components", {})
        components["schemas"] = components.get("schemas", {}) | _components
        components["securitySchemes"] = {
            TOKEN: {
                "type": "http",
                "scheme": "bearer",
                "description": "An administrator's token, or a token that a device signed for this request",
            }
        }
        for operations in made["paths"].values():
            for operation in operations.values():
                if "401" in operation["responses"]:
                    operation["security"] = [{TOKEN: []}]
        app.openapi_schema = made
    return app.openapi_schema
