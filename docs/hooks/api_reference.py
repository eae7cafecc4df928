"""The reference of the HTTP API, from its OpenAPI document and the guards of its routes."""

from typing import Any

from docs.hooks.markdown import COMMENT, code, sentence, table
from umbel_server.api import NOUNS, openapi
from umbel_server.api.access import Guard
from umbel_server.api.guarded import GuardedRoute

METHODS = ("get", "head", "post", "put", "patch", "delete")


def page() -> str:
    """The page, in Markdown."""
    document = openapi()
    guards = _guards()
    lines = [
        COMMENT,
        "# HTTP API",
        "",
        "A request carries a token: `Authorization: Bearer TOKEN`. An administrator's token is printed by `umbel admin add`. "
        "A device signs a token of its own for each request. Times are Unix seconds. "
        'A refusal is JSON with one sentence: `{"error": "..."}`.',
        "",
        "A running server has the same as an OpenAPI document at `/openapi.json`, and as a page to try at `/docs`.",
        "",
    ]
    by_noun: dict[str, list[str]] = {}
    for path, operations in sorted(document["paths"].items()):
        noun = path.removeprefix("/v1/").partition("/")[0]
        for method in METHODS:
            if method in operations:
                by_noun.setdefault(noun, []).extend(
                    _operation(method, path, operations[method], document, guards[method.upper(), path])
                )
    for noun, text in sorted(by_noun.items()):
        lines += [f"## {noun.capitalize()}", "", *text]
    return "\n".join(lines)


def _guards() -> dict[tuple[str, str], Guard]:
    return {
        (method, route.path): route.guard
        for noun in NOUNS
        for route in noun.router.routes
        if isinstance(route, GuardedRoute)
        for method in route.methods
    }


def _operation(method: str, path: str, operation: dict[str, Any], document: dict[str, Any], guard: Guard) -> list[str]:
    lines = [f"### `{method.upper()} {path}`", "", sentence(operation.get("description", "")), "", _needs(guard), ""]
    lines += table(
        ("parameter", "in", "type"),
        [(code(one["name"]), one["in"], _type(one["schema"], document)) for one in operation.get("parameters", [])],
    )
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        lines += [f"Body: `{media}`", "", *_fields(content["schema"], document)]
    for status, answer in sorted(operation["responses"].items()):
        if not status.startswith("2"):
            continue
        for media, content in answer.get("content", {}).items():
            shown = _fields(content.get("schema", {}), document)
            kind = _type(content.get("schema", {}), document)
            lines += [f"Answer {status}: `{media}`{f', {kind}' if kind else ''}", "", *shown]
    refused = [status for status in sorted(operation["responses"]) if not status.startswith("2")]
    lines += [f"Refusals: {', '.join(refused)}", ""]
    return lines


def _needs(guard: Guard) -> str:
    if guard.role is None:
        return "Needs no token."
    words = f"Needs an administrator with the role `{guard.role}` or a higher one"
    if guard.role == "owner":
        words = "Needs an administrator with the role `owner`"
    return f"{words}, or an enrolled device." if guard.devices else f"{words}."


def _resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return found
    return schema


def _fields(schema: dict[str, Any], document: dict[str, Any]) -> list[str]:
    """A table of an object's fields, or of those of the objects in a list."""
    found = _resolved(schema, document)
    if found.get("type") == "array":
        found = _resolved(found["items"], document)
    needed = found.get("required", [])
    rows = [
        (code(name), _type(field, document), "" if name in needed else code(str(field.get("default", ""))))
        for name, field in found.get("properties", {}).items()
    ]
    return table(("field", "type", "default"), rows)


def _type(schema: dict[str, Any], document: dict[str, Any]) -> str:
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    for alternatives in ("anyOf", "oneOf"):
        if alternatives in schema:
            return " or ".join(dict.fromkeys(_type(one, document) for one in schema[alternatives]))
    if "enum" in schema:
        return ", ".join(code(str(value)) for value in schema["enum"])
    kind = str(schema.get("type", ""))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}), document) or 'values'}"
    if kind == "object" and schema.get("additionalProperties") not in (None, False, True):
        return f"object of {_type(schema['additionalProperties'], document)}"
    return kind
