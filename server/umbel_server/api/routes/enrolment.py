"""How devices come to be enrolled: invitations for administrators, enrolment and the way back for devices."""

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from umbel import signing
from umbel.enrolment import (
    CERTIFICATE_PATH,
    CERTIFICATE_REQUEST,
    CONNECTION_PATH,
    ENROL_PATH,
    TRUST_PATH,
    Access,
    EnrolmentReply,
    make_token,
    read_request,
)
from umbel.errors import UmbelError
from umbel.messages import PROTOCOL
from umbel.signing import public_key
from umbel_server.api.access import Asking, Who, device_or, everybody_who_enrols, owner, server_of, viewer
from umbel_server.api.documented import gives_bytes, takes, takes_bytes
from umbel_server.api.guarded import by, guarded, note
from umbel_server.api.routes.blobs import body_of
from umbel_server.api.scope import check_population
from umbel_server.devices.invitations import UnknownInvitation
from umbel_server.security import pki
from umbel_server.server import Server

router = guarded("enrolment")

PEM = "application/pem-certificate-chain"


class InvitationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Invitations to make: `count` into a population, each open for `ttl` seconds, with labels and perhaps a kind."""

    population: str
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    ttl: float = 86_400.0
    labels: dict[str, str] = {}
    kind: str = ""


@router.get(TRUST_PATH, dependencies=by(everybody_who_enrols()))
async def show_trust(request: Request) -> Response:
    """Whom to trust, for devices that check it against their enrolment token."""
    return Response(msgspec.json.encode(server_of(request).state.trust), media_type="application/json")


@router.post(ENROL_PATH, dependencies=by(everybody_who_enrols("device.enrol")), openapi_extra=takes_bytes())
async def enrol(request: Request) -> Response:
    """Register a device by its public key; the body is an EnrolmentRequest in a JWS by that key."""
    server = server_of(request)
    asked = await run_in_threadpool(read_request, await body_of(request))
    noted = note(request, f"{asked.population}/{asked.device}", asked.population, kind=asked.kind)
    enrolled = await run_in_threadpool(server.invitations.enrol, asked)
    noted.who = name = f"{enrolled.population}/{enrolled.device}"
    note(request, name, enrolled.population, kind=enrolled.kind)
    noted.changed = enrolled.changed
    return await run_in_threadpool(_reply, server, enrolled.population, enrolled.device, enrolled.kind)


@router.get(CONNECTION_PATH, dependencies=by(device_or("viewer")))
def connection(request: Request, who: Who) -> Response:
    """What the device was told when it enrolled, as it is now."""
    if who is None:
        raise UmbelError("a device asks for its connection with a token that it signed, not an administrator")
    server = server_of(request)
    device = server.devices.get(who.population, who.device)
    return _reply(server, device.population, device.id, device.kind)


@router.post(
    CERTIFICATE_PATH,
    dependencies=by(device_or("owner", "device.certify")),
    openapi_extra=takes_bytes(),
    responses=gives_bytes(PEM),
    response_class=Response,
)
async def certify(request: Request, who: Who) -> Response:
    """A certificate in PEM for the device that asks, with which brokers know it by `<population>/<device>`.

    The body is the signing request, in PEM, in a JWS by the device's key.
    """
    if who is None:
        raise UmbelError("a device asks for its certificate with a token that it signed, not an administrator")
    server = server_of(request)
    asked = await body_of(request)
    certificate = await run_in_threadpool(_certify, server, who, asked)
    return Response(certificate, media_type=PEM)


def _certify(server: Server, who: Access, asked: bytes) -> str:
    if not server.state.tls:
        raise UmbelError("this server speaks without TLS and issues no certificates")
    request = signing.verify_as(CERTIFICATE_REQUEST, asked, server.devices.known(who.population, who.device).key)
    now = datetime.fromtimestamp(server.clock(), UTC)
    return pki.certify(server.state.folder, request, f"{who.population}/{who.device}", now)


def _reply(server: Server, population: str, device: str, kind: str) -> Response:
    mqtt, row = server.state.config.mqtt, server.devices.get(population, device)
    reply = EnrolmentReply(
        public_key(server.state.keys.lineage.newest),
        server.state.public_broker,
        server.broker_port,
        population,
        device,
        kind,
        mqtt.tls,
        server.clock(),
        server.outbox.sequence.next(),
        row.said_epoch,
        row.answered,
        PROTOCOL,
    )
    return Response(msgspec.json.encode(reply), media_type="application/json")


@router.post("/v1/invitations", dependencies=by(owner("invitation.add")), openapi_extra=takes(InvitationRequest))
async def invite(request: Request, who: Asking) -> list[dict[str, Any]]:
    """Make invitations; only this answer ever holds their tokens."""
    server = server_of(request)
    asked = msgspec.json.decode(await body_of(request), type=InvitationRequest)
    note(request, population=asked.population, count=asked.count, ttl=asked.ttl)
    check_population(who, asked.population)
    made = await run_in_threadpool(
        server.invitations.invite, asked.population, asked.count, asked.ttl, asked.labels, asked.kind
    )
    return [
        {**server.invitations.describe(one.invitation), "token": make_token(one.secret, server.state.trust)}
        for one in made
    ]


@router.get("/v1/invitations", dependencies=by(viewer()))
def list_invitations(request: Request, who: Asking) -> list[dict[str, Any]]:
    """Every invitation, newest first; the tokens are nowhere."""
    invitations = server_of(request).invitations
    return [invitations.describe(row) for row in invitations.list() if who.sees(row.population)]


@router.post("/v1/invitations/{id}/revoke", dependencies=by(owner("invitation.revoke")))
def revoke_invitation(request: Request, who: Asking, id: str) -> dict[str, Any]:
    """Take back an invitation that nobody has used."""
    invitations = server_of(request).invitations
    invitation = invitations.get(id)
    if not who.sees(invitation.population):
        raise UnknownInvitation(id)
    note(request, id, invitation.population)
    return invitations.describe(invitations.revoke(id))
