"""The admin API as Python functions."""

import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from umbel.errors import UmbelError
from umbel.plan import Plan
from umbel.tensors import digest

FINAL = ("done", "declined", "failed", "rejected", "cancelled", "expired")
TIMEOUT = 60.0
POLL_SECONDS = 0.1
CONNECT_RETRIES = 3
"""Attempts to connect again, over 3.5 s: a server may have been started a moment ago."""


class NoAnswer(UmbelError):
    """The server does not answer."""


def at(path: str, *names: str) -> str:
    """`path` with `{}` filled in with names that somebody typed; raises UmbelError on those that no path can hold."""
    for name in names:
        if name in ("", ".", ".."):
            raise UmbelError(f"an id or a name was expected, got {name!r}")
    return path.format(*(quote(name, safe="") for name in names))


class Client:
    """A connection to one server's admin API; every error is an UmbelError with one sentence."""

    def __init__(self, url: str, token: str, tls: ssl.SSLContext | None = None, public_url: str = "") -> None:
        """At `url`; others reach the server at `public_url`, if that is another."""
        self._url, self._public_url = url, public_url or url
        try:
            self._http = httpx.Client(
                base_url=url,
                headers={"Authorization": f"Bearer {token}"},
                timeout=TIMEOUT,
                transport=httpx.HTTPTransport(verify=tls or True, retries=CONNECT_RETRIES, trust_env=False),
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise UmbelError(f"expected a server's address such as https://umbel.example:8470, got {url!r}") from error

    @property
    def url(self) -> str:
        """Where the server answers others."""
        return self._public_url

    def get(self, path: str, timeout: float = TIMEOUT, **params: Any) -> Any:
        """The JSON at `path`, waited for at most `timeout` seconds."""
        asked = {k: v for k, v in params.items() if v is not None}
        return self._json("GET", path, params=asked, timeout=timeout)

    def post(self, path: str, body: Any = None, timeout: float = TIMEOUT) -> Any:
        """The JSON answer to `body` as JSON, waited for at most `timeout` seconds."""
        return self._json("POST", path, json={} if body is None else body, timeout=timeout)

    def put_blob(self, data: bytes, population: str = "") -> str:
        """Store `data` for a population; returns its address. With none it is only for an administrator of all to use."""
        address = digest(data)
        self._call("PUT", f"/v1/blobs/{address}", content=data, params=_for(population))
        return address

    def get_blob(self, address: str) -> bytes:
        """The bytes at an address, checked."""
        data = self._call("GET", f"/v1/blobs/{address}").content
        if digest(data) != address:
            raise UmbelError(f"blob {address[:12]} arrived with another digest; try again")
        return data

    def add_plan(self, path: Path, population: str = "") -> dict[str, Any]:
        """Upload a plan for a population, which the server signs; returns its digest as `plan`."""
        if not path.is_file():
            raise UmbelError(f"{path}: no such plan; make one with 'umbel compile'")
        Plan.open(path)  # here, so that an error names this file
        return dict(self._json("POST", "/v1/plans", content=path.read_bytes(), params=_for(population)))

    def settle(
        self,
        commands: Iterable[dict[str, Any]],
        seconds: float,
        progress: Callable[[dict[str, Any]], None] = lambda command: None,
    ) -> list[dict[str, Any]]:
        """Wait until every command has its final state, at most `seconds`; returns them as they are then."""
        deadline = time.monotonic() + seconds
        current = {command["id"]: command for command in commands}
        while time.monotonic() < deadline:
            for id in [id for id, command in current.items() if command["state"] not in FINAL]:
                current[id] = self.get(f"/v1/commands/{id}")
                if current[id]["state"] in FINAL:
                    progress(current[id])
            if all(command["state"] in FINAL for command in current.values()):
                break
            time.sleep(POLL_SECONDS)
        return list(current.values())

    def _json(self, method: str, path: str, **options: Any) -> Any:
        try:
            return self._call(method, path, **options).json()
        except ValueError as error:
            raise UmbelError(f"{self._url} answered {method} {path} with no JSON; is it an Umbel server?") from error

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.InvalidURL as error:
            raise UmbelError(f"{self._url} is no address of a server: {error}") from error
        except httpx.HTTPError as error:
            raise NoAnswer(f"no answer from the server at {self._url} ({error}); is 'umbel serve' running?") from error
        if response.is_error:
            raise UmbelError(_reason(response))
        return response


def _for(population: str) -> dict[str, str]:
    return {"population": population} if population else {}


def _reason(response: httpx.Response) -> str:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        return str(answer["error"])
    return f"the server answered {response.status_code} to {response.request.method} {response.request.url.path}"
