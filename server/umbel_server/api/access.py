"""Who may ask: devices by a signed token, administrators by theirs or, on the server's machine, the one in its state folder."""

from dataclasses import dataclass
from typing import Annotated, cast

import msgspec
from fastapi import Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from umbel import signing
from umbel.enrolment import ACCESS, CLOCK, CLOCK_TOLERANCE, UNKNOWN, Access
from umbel.errors import NOT_DECODED, UmbelError
from umbel_server.admins import LOCAL, Identity, Role, TooManyFailures, WrongToken, is_local
from umbel_server.devices import UnknownDevice
from umbel_server.server import Server

OWNER = Identity(LOCAL, "owner")


class Refused(UmbelError):
    """A request that its sender may not make; `status` is the HTTP status, `code` tells a device what it can act on."""

    def __init__(self, sentence: str, status: int = 401, code: str = "") -> None:
        super().__init__(sentence)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Guard:
    """Who may use a route, and as which action its use goes into the audit log.

    `role` is the lowest that may (None: everybody may); enrolled devices may with `devices`. `action` is "" for what
    changes nothing. As a dependency it raises Refused for everybody else.
    """

    role: Role | None
    action: str = ""
    devices: bool = False

    def is_recorded(self, request: Request) -> bool:
        """Whether what becomes of a request goes into the audit log: a device's use of a route for both does not."""
        return bool(self.action) and not (self.devices and is_signed(bearer_of(request)))

    async def __call__(self, request: Request) -> None:
        if self.role is not None:
            await run_in_threadpool(self._check, request, self.role)

    def _check(self, request: Request, role: Role) -> None:
        token = bearer_of(request)
        if self.devices and is_signed(token):
            request.state.device = _device(request, token)
            return
        request.state.identity = identity = _identify(request, token)
        if not identity.may(role):
            raise Refused(
                f"this needs the role {_or_higher(role)}, and {identity.name} is {identity.role}; ask an owner of this server",
                403,
            )


def viewer() -> Guard:
    """For those who look."""
    return Guard("viewer")


def operator(action: str) -> Guard:
    """For those who train, send and ship."""
    return Guard("operator", action)


def owner(action: str = "") -> Guard:
    """For those who decide who may do what."""
    return Guard("owner", action)


def device_or(role: Role, action: str = "") -> Guard:
    """For enrolled devices, and for administrators of a role or a higher one; only theirs is recorded."""
    return Guard(role, action, devices=True)


def everybody(action: str = "") -> Guard:
    """For whoever reaches the server."""
    return Guard(None, action)


def server_of(request: Request) -> Server:
    """The server that this application belongs to."""
    return cast(Server, request.app.state.server)


def identity_of(request: Request) -> Identity:
    """The administrator who asks, on a route whose guard names a role and no devices."""
    return cast(Identity, request.state.identity)


def device_of(request: Request) -> Access | None:
    """What a device says of its request; None when an administrator asks."""
    return cast("Access | None", getattr(request.state, "device", None))


Asking = Annotated[Identity, Depends(identity_of)]
Who = Annotated[Access | None, Depends(device_of)]


def is_signed(token: str) -> bool:
    """Whether a token has the form of one that a device signed (a compact JWS); no administrator's has."""
    return token.count(".") == 2


def _identify(request: Request, token: str) -> Identity:
    server = server_of(request)
    if is_local(token, server.state.admin_token):
        return OWNER
    try:
        return server.admins.identify(token, request.client.host if request.client is not None else "")
    except WrongToken as error:
        raise Refused(str(error)) from error
    except TooManyFailures as error:
        raise Refused(str(error), 429) from error


def _device(request: Request, token: str) -> Access:
    """What a device says of its request; raises Refused unless it signed a fresh token for it and is enrolled, Barred."""
    try:
        claimed = msgspec.json.decode(signing.payload_unverified(token.encode()), type=Access)
        known = server_of(request).devices.known(claimed.population, claimed.device)
        access = msgspec.json.decode(signing.verify_as(ACCESS, token.encode(), known.key), type=Access)
    except UnknownDevice as error:
        raise Refused(f"expected a request signed by an enrolled device: {error}", code=UNKNOWN) from error
    except (UmbelError, *NOT_DECODED) as error:
        raise Refused(f"expected a request signed by an enrolled device: {error}") from error
    if (access.method, access.path) != (request.method, request.url.path):
        raise Refused(f"the token is for {access.method} {access.path[:90]}, not for this request")
    server = server_of(request)
    skew = access.at - server.clock()
    server.devices.clocks.measured(access.population, access.device, skew)
    if abs(skew) > CLOCK_TOLERANCE:
        raise Refused(
            f"the token's time differs from the server's by {abs(skew):.0f} s "
            f"(at most {CLOCK_TOLERANCE:.0f}); set the device's clock",
            code=CLOCK,
        )
    known.check()
    return access


def bearer_of(request: Request) -> str:
    """The token that a request carries, or ""."""
    return request.headers.get("authorization", "").removeprefix("Bearer ").strip()


def _or_higher(role: Role) -> str:
    return {"viewer": "viewer or higher", "operator": "operator or owner", "owner": "owner"}[role]
