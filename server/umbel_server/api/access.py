"""Access: devices sign a token for each request; administrators send theirs, or on the server's machine the state folder's."""

from dataclasses import dataclass
from typing import Annotated, cast

import msgspec
from fastapi import Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from umbel import signing
from umbel.enrolment import ACCESS, CLOCK, OFFSET, TOKEN_SECONDS, UNKNOWN, Access
from umbel.errors import NOT_DECODED, UmbelError
from umbel.tensors import digest
from umbel.topics import check_name
from umbel_server.devices.register import Barred, UnknownDevice
from umbel_server.security.admins import LOCAL, Identity, Role, TooManyFailures, WrongToken, is_local
from umbel_server.server import Server

READS = frozenset({"GET", "HEAD"})
OWNER = Identity(LOCAL, "owner")


class Refused(UmbelError):
    """A request that its sender may not make, or not yet.

    `status` is the HTTP status. `code` tells a device how to react. After `retry_after` seconds (0: never) the sender may
    ask again.
    """

    def __init__(self, sentence: str, status: int = 401, code: str = "", retry_after: float = 0.0) -> None:
        super().__init__(sentence)
        self.status, self.code, self.retry_after = status, code, retry_after


@dataclass(frozen=True)
class Guard:
    """The access rule of a route, and the action that the audit log records for its use.

    `role` is the lowest role that may use the route (None: every request may). `devices` admits enrolled devices too.
    `action` is "" for a route that changes nothing. `enrols` limits the rate of requests from one address. As a dependency
    a guard raises Refused for all others.
    """

    role: Role | None
    action: str = ""
    devices: bool = False
    enrols: bool = False

    def is_recorded(self, request: Request) -> bool:
        """Whether the audit log records a request. It does not record a device on a route that administrators use too."""
        return bool(self.action) and not (self.devices and is_signed(bearer_of(request)))

    async def __call__(self, request: Request) -> None:
        if self.role is not None:
            await run_in_threadpool(self._check, request, self.role)
        elif self.enrols:
            wait = server_of(request).request_limits.enrolment(address_of(request))
            if wait:
                raise _too_many(
                    request, address_of(request), "enrolments", "too many enrolments from this address", wait
                )

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
    """A guard that admits viewers and higher roles."""
    return Guard("viewer")


def operator(action: str) -> Guard:
    """A guard that admits operators and owners."""
    return Guard("operator", action)


def owner(action: str = "") -> Guard:
    """A guard that admits owners."""
    return Guard("owner", action)


def device_or(role: Role, action: str = "") -> Guard:
    """A guard that admits enrolled devices, and administrators of `role` or higher; only administrators are recorded."""
    return Guard(role, action, devices=True)


def everybody(action: str = "") -> Guard:
    """A guard that admits every request."""
    return Guard(None, action)


def everybody_who_enrols(action: str = "") -> Guard:
    """A guard that admits every request, up to a rate for each address."""
    return Guard(None, action, enrols=True)


def server_of(request: Request) -> Server:
    """The server that this application belongs to."""
    return cast(Server, request.app.state.server)


def identity_of(request: Request) -> Identity:
    """The administrator that sent the request; for routes whose guard names a role and no devices."""
    return cast(Identity, request.state.identity)


def device_of(request: Request) -> Access | None:
    """The verified token of the device that sent the request; None for an administrator."""
    return cast("Access | None", getattr(request.state, "device", None))


Asking = Annotated[Identity, Depends(identity_of)]
Who = Annotated[Access | None, Depends(device_of)]


def is_signed(token: str) -> bool:
    """Whether a token is a compact JWS, as devices sign them; administrators' tokens never are."""
    return token.count(".") == 2


def _identify(request: Request, token: str) -> Identity:
    server = server_of(request)
    if is_local(token, server.state.admin_token):
        return OWNER
    try:
        return server.admins.identify(token, address_of(request))
    except WrongToken as error:
        server.refusals.note(address_of(request), "tokens", str(error))
        raise Refused(str(error)) from error
    except TooManyFailures as error:
        server.refusals.note(address_of(request), "tokens", str(error))
        raise Refused(str(error), 429, retry_after=error.wait) from error


def _device(request: Request, token: str) -> Access:
    """Verify a device's token for this request and return it.

    The signature is checked before the device's rate limit, so that a sender without the key cannot use that limit up.
    Many devices may share one address. So an address that sent many wrong tokens is refused only for devices that are not
    remembered: each of those would cost a query of the register.

    Raises Refused unless the token is fresh, for this request and by an enrolled device, Barred for a barred device.
    """
    server, address = server_of(request), address_of(request)
    try:
        claimed = msgspec.json.decode(signing.payload_unverified(token.encode()), type=Access)
        check_name(claimed.population, "a population")
        check_name(claimed.device, "a device id")
        known = server.devices.remembered(claimed.population, claimed.device)
        if known is None:
            if wait := server.request_limits.suspect(address):
                raise _too_many(request, address, "tokens", "too many wrong tokens from this address", wait)
            known = server.devices.known(claimed.population, claimed.device)
        access = msgspec.json.decode(signing.verify_as(ACCESS, token.encode(), known.key), type=Access)
    except Refused:
        raise
    except (UmbelError, *NOT_DECODED) as error:
        server.request_limits.wrong(address)
        sentence = f"expected a request signed by an enrolled device: {error}"
        server.refusals.note(address, "tokens", sentence)
        raise Refused(sentence, code=UNKNOWN if isinstance(error, UnknownDevice) else "") from error
    name = f"{access.population}/{access.device}"
    if wait := server.request_limits.device(access.population, access.device):
        raise _too_many(request, name, "requests", "the device asks too often", wait)
    try:
        _check_token(request, access)
        known.check()
    except (Refused, Barred) as error:
        server.refusals.note(name, "requests", str(error))
        raise
    return access


def _check_token(request: Request, access: Access) -> None:
    """Raise Refused unless a token is for this request and fresh; if the request changes something, also if it was used before."""
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if (access.method, access.path) != (request.method, asked):
        raise Refused(f"the token is for {access.method} {access.path[:90]}, not for this request")
    offset = number_of(request.headers.get(OFFSET, "0"))
    if offset not in (None, access.offset):
        raise Refused(f"the token is for an upload from byte {access.offset}, not from {offset}")
    server = server_of(request)
    used, skew = server.used_tokens, access.at - server.clock()
    server.devices.clocks.asked(access.population, access.device, skew)
    if abs(skew) > TOKEN_SECONDS:
        raise Refused(
            f"the token's time differs from the server's by {abs(skew):.0f} s (at most {TOKEN_SECONDS:.0f}); "
            "set the device's clock",
            code=CLOCK,
        )
    if request.method in READS:
        return
    if access.at < used.since:
        wait = used.since - access.at
        raise Refused(
            "the token is older than this server's record of used tokens; sign the request again", 503, retry_after=wait
        )
    if not access.nonce or not used.use(access):
        raise Refused("the token was used before, or has no nonce; sign each request anew")


def check_body(request: Request, data: bytes) -> None:
    """Raise Refused when a device's token is for a request with another body."""
    access = device_of(request)
    if access is not None and access.body != digest(data):
        raise Refused("the token is for a request with another body")


def _too_many(request: Request, who: str, what: str, why: str, wait: float) -> Refused:
    sentence = f"{why}; ask again in {wait:.0f} s" if wait >= 1 else f"{why}; ask again in a moment"
    server_of(request).refusals.note(who, what, sentence)
    return Refused(sentence, 429, retry_after=wait)


def number_of(text: str) -> int | None:
    """The number of bytes that a header names; None when it is not a number."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def address_of(request: Request) -> str:
    """The network address that a request comes from."""
    return request.client.host if request.client is not None else ""


def bearer_of(request: Request) -> str:
    """The bearer token of a request, or ""."""
    return request.headers.get("authorization", "").removeprefix("Bearer ").strip()


def _or_higher(role: Role) -> str:
    return {"viewer": "viewer or higher", "operator": "operator or owner", "owner": "owner"}[role]
