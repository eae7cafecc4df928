"""How devices come to be enrolled: invitations for administrators, enrolment and the way back for devices."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from umbel.enrolment import CONNECTION_PATH, ENROL_PATH, EnrolmentReply, EnrolmentRequest, make_token
from umbel.errors import UmbelError
from umbel.signing import public_key
from umbel_server.api.access import require_admin, server_of
from umbel_server.api.device_routes import Who, body_of
from umbel_server.server import Server

public = APIRouter(tags=["device"])
router = APIRouter(tags=["invitations"], dependencies=[Depends(require_admin)])


class InvitationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Invitations to make: `count` into a population, each open for `ttl` seconds, with labels and perhaps a kind."""

    population: str
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    ttl: float = 86_400.0
    labels: dict[str, str] = {}
    kind: str = ""


@public.post(ENROL_PATH)
async def enrol(request: Request) -> Response:
    """Register a device by its public key."""
    server = server_of(request)
    asked = msgspec.json.decode(await body_of(request), type=EnrolmentRequest)
    enrolled = await run_in_threadpool(server.invitations.enrol, asked)
    return _reply(server, enrolled.population, enrolled.device, enrolled.kind)


@public.get(CONNECTION_PATH)
def connection(request: Request, who: Who) -> Response:
    """What the device was told when it enrolled, as it is now."""
    if who is None:
        raise UmbelError("a device asks for its connection with a token that it signed, not an administrator")
    server = server_of(request)
    device = server.devices.get(who.population, who.device)
    return _reply(server, device.population, device.id, device.kind)


def _reply(server: Server, population: str, device: str, kind: str) -> Response:
    mqtt = server.state.config.mqtt
    reply = EnrolmentReply(
        public_key(server.state.key),
        mqtt.advertised_host or mqtt.host,
        server.broker_port,
        population,
        device,
        kind,
    )
    return Response(msgspec.json.encode(reply), media_type="application/json")


@router.post("/v1/invitations")
async def invite(request: Request) -> list[dict[str, Any]]:
    """Make invitations; only this answer ever holds their tokens."""
    server = server_of(request)
    asked = msgspec.json.decode(await body_of(request), type=InvitationRequest)
    made = await run_in_threadpool(
        server.invitations.invite, asked.population, asked.count, asked.ttl, asked.labels, asked.kind
    )
    return [
        {**server.invitations.describe(one.invitation), "token": make_token(one.secret, server.state.key)}
        for one in made
    ]


@router.get("/v1/invitations")
def list_invitations(request: Request) -> list[dict[str, Any]]:
    """Every invitation, newest first; the tokens are nowhere."""
    invitations = server_of(request).invitations
    return [invitations.describe(row) for row in invitations.list()]


@router.post("/v1/invitations/{id}/revoke")
def revoke_invitation(request: Request, id: str) -> dict[str, Any]:
    """Take back an invitation that nobody has used."""
    invitations = server_of(request).invitations
    return invitations.describe(invitations.revoke(id))
