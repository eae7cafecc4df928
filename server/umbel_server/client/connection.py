"""The connection to a server's API: requests, their JSON, and errors in one sentence."""

import ssl
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from umbel.errors import UmbelError

TIMEOUT = 60.0
CONNECT_RETRIES = 3
"""Attempts to connect again, over 3.5 s: a server may have been started a moment ago."""

T = TypeVar("T")


class NoAnswer(UmbelError):
    """The server does not answer."""


def at(path: str, *names: str) -> str:
    """`path` with `{}` filled in with names that somebody typed; raises UmbelError on those that no path can hold."""
    for name in names:
        if name in ("", ".", ".."):
            raise UmbelError(f"an id or a name was expected, got {name!r}")
    return path.format(*(quote(name, safe="") for name in names))


class Connection:
    """HTTP to one server's API; every error is an UmbelError with one sentence."""

    def __init__(
        self, url: str, token: str, tls: ssl.SSLContext | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._url = url
        try:
            self._http = httpx.Client(
                base_url=url,
                headers={"Authorization": f"Bearer {token}"},
                timeout=TIMEOUT,
                transport=transport
                or httpx.HTTPTransport(verify=tls or True, retries=CONNECT_RETRIES, trust_env=False),
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise UmbelError(f"expected a server's address such as https://umbel.example:8470, got {url!r}") from error

    def ask(self, decoder: "msgspec.json.Decoder[T]", method: str, path: str, **options: Any) -> T:
        """The answer to a request, decoded."""
        data = self.call(method, path, **options).content
        try:
            return decoder.decode(data)
        except msgspec.ValidationError as error:
            raise UmbelError(
                f"{self._url} answered {method} {path} in a form that this version of umbel does not know ({error}); "
                "install the version that the server has"
            ) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UmbelError(f"{self._url} answered {method} {path} with no JSON; is it an Umbel server?") from error

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The response to a request; raises NoAnswer when there is none, UmbelError with the server's reason on a refusal."""
        try:
            response = self._http.request(method, path, **options)
        except httpx.InvalidURL as error:
            raise UmbelError(f"{self._url} is no address of a server: {error}") from error
        except httpx.HTTPError as error:
            raise NoAnswer(f"no answer from the server at {self._url} ({error}); is 'umbel serve' running?") from error
        if response.is_error:
            raise UmbelError(_reason(response))
        return response


def _reason(response: httpx.Response) -> str:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        return str(answer["error"])
    return f"the server answered {response.status_code} to {response.request.method} {response.request.url.path}"
