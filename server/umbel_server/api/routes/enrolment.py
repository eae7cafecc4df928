"""Enrolment: the server's trust, the enrolment itself, connection settings and certificates of devices."""

from datetime import UTC, datetime

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
    Trust,
    read_request,
)
from umbel.errors import UmbelError
from umbel.messages import PROTOCOL
from umbel.signing import public_key
from umbel_server.api.access import Who, device_or, everybody_who_enrols, server_of
from umbel_server.api.bodies import body_of
from umbel_server.api.documented import gives_bytes, takes_bytes
from umbel_server.api.guarded import by, guarded, note
from umbel_server.security import pki
from umbel_server.server import Server

router = guarded("enrolment")

PEM = "application/pem-certificate-chain"


@router.get(TRUST_PATH, dependencies=by(everybody_who_enrols()))
async def show_trust(request: Request) -> Trust:
    """Show the server's key and certificate authority; a device checks them against its enrolment token."""
    return server_of(request).state.trust


@router.post(ENROL_PATH, dependencies=by(everybody_who_enrols("device.enrol")), openapi_extra=takes_bytes())
async def enrol(request: Request) -> EnrolmentReply:
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
def connection(request: Request, who: Who) -> EnrolmentReply:
    """Show the current connection settings, as at enrolment."""
    if who is None:
        raise UmbelError("only a device can ask for its connection, with a token that it signed")
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
    """Issue a certificate in PEM to the device that asks; brokers read the name `<population>/<device>` from it.

    The body is the signing request, in PEM, in a JWS by the device's key.
    """
    if who is None:
        raise UmbelError("only a device can ask for its certificate, with a token that it signed")
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


def _reply(server: Server, population: str, device: str, kind: str) -> EnrolmentReply:
    mqtt, row = server.state.config.mqtt, server.devices.get(population, device)
    return EnrolmentReply(
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
