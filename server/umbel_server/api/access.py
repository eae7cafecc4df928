"""Who may ask: devices by a signed token, administrators by the admin token."""

import hmac
import time
from typing import cast

import msgspec
from starlette.requests import Request

from umbel import signing
from umbel.enrolment import CLOCK, CLOCK_TOLERANCE, UNKNOWN, Access
from umbel.errors import UmbelError
from umbel_server.devices import UnknownDevice
from umbel_server.server import Server


class Refused(UmbelError):
    """A request without a valid token; `status` is the HTTP status, `code` tells a device what it can act on."""

    status = 401

    def __init__(self, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.code = code


def server_of(request: Request) -> Server:
    """The server that this application belongs to."""
    return cast(Server, request.app.state.server)


def require_admin(request: Request) -> None:
    """Raise Refused unless the request carries the admin token."""
    if not _is_admin(request):
        raise Refused("expected the admin token; run the command on the server's machine, or set UMBEL_TOKEN")


def require_device_or_admin(request: Request) -> Access | None:
    """What a device says of its request; None when an administrator asks.

    Raises Refused unless the request carries the admin token, or a fresh token for itself signed by an enrolled device,
    and Barred when that device is suspended or revoked.
    """
    if _is_admin(request):
        return None
    token = _bearer(request)
    try:
        claimed = msgspec.json.decode(_payload(token), type=Access)
        known = server_of(request).devices.known(claimed.population, claimed.device)
        access = msgspec.json.decode(signing.verify(token, known.key), type=Access)
    except UnknownDevice as error:
        raise Refused(f"expected a request signed by an enrolled device: {error}", UNKNOWN) from error
    except (UmbelError, msgspec.DecodeError) as error:
        raise Refused(f"expected a request signed by an enrolled device: {error}") from error
    if (access.method, access.path) != (request.method, request.url.path):
        raise Refused(f"the token is for {access.method} {access.path[:90]}, not for this request")
    if abs(time.time() - access.at) > CLOCK_TOLERANCE:
        raise Refused(
            f"the token's time differs from the server's by {abs(time.time() - access.at):.0f} s "
            f"(at most {CLOCK_TOLERANCE:.0f}); set the device's clock",
            CLOCK,
        )
    known.check()
    return access


def _is_admin(request: Request) -> bool:
    return hmac.compare_digest(_bearer(request), server_of(request).state.admin_token.encode())


def _bearer(request: Request) -> bytes:
    return request.headers.get("authorization", "").removeprefix("Bearer ").encode()


def _payload(token: bytes) -> bytes:
    try:
        return signing.payload_unverified(token)
    except UmbelError as error:
        raise Refused(str(error)) from error
