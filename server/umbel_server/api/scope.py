"""The scope of an administrator: devices, commands, runs, releases and blobs of its populations.

All others look as if they did not exist.
"""

from fastapi import Request

from umbel.errors import UmbelError
from umbel.topics import check_name
from umbel_server.api.access import device_of, identity_of, server_of
from umbel_server.api.errors import UnknownPopulation
from umbel_server.api.guarded import note
from umbel_server.devices.register import UnknownDevice
from umbel_server.security.admins import Identity
from umbel_server.server import Server
from umbel_server.storage.database import Command, Device, Release, Run


def device_in_scope(request: Request, population: str, device: str) -> Device:
    """One device; raises UnknownDevice."""
    if not identity_of(request).sees(population):
        raise UnknownDevice(
            f"device {device} of population {population} is not enrolled here; see 'umbel devices list'"
        )
    return server_of(request).devices.get(population, device)


def run_in_scope(request: Request, id: str) -> Run:
    """One run by its id, the beginning of it, or "latest", noted for the audit log; raises UnknownRun."""
    run = server_of(request).runs.get(id, identity_of(request).populations)
    note(request, run.id, run.population)
    return run


def command_in_scope(request: Request, id: str) -> Command:
    """One command; raises UnknownCommand."""
    return server_of(request).outbox.get(id, identity_of(request).populations)


def release_in_scope(request: Request, id: str) -> Release:
    """One release; raises UnknownRelease."""
    return server_of(request).releases.get(id, identity_of(request).populations)


def check_population(identity: Identity, population: str) -> None:
    """Raise UnknownPopulation unless the administrator may act on a population."""
    if not identity.sees(population):
        raise UnknownPopulation(
            f"population {population[:64]!r} is unknown to {identity.name}, whose token is for {identity.scope}"
        )


def check_blobs(server: Server, identity: Identity, *addresses: str) -> None:
    """Raise MissingBlob unless every named blob belongs to a population of the administrator."""
    for sha256 in addresses:
        if sha256 and identity.populations:
            server.ownership.check(identity.populations, sha256)


def blob_in_scope(request: Request, sha256: str) -> str:
    """The population that owns a requested blob; "" for an administrator of all populations. Raises MissingBlob."""
    ownership = server_of(request).ownership
    if (device := device_of(request)) is not None:
        return ownership.check([device.population], sha256)
    populations = identity_of(request).populations
    return ownership.check(populations, sha256) if populations else ""


def population_of_upload(request: Request) -> str:
    """The population of an administrator's upload: the query's `population`, or the administrator's only one.

    It is "" for an administrator of all populations. Raises UmbelError when the administrator has several and the query
    names none, UnknownPopulation when it names another.
    """
    identity, asked = identity_of(request), request.query_params.get("population", "")
    if asked:
        check_population(identity, check_name(asked, "a population"))
        return asked
    if len(identity.populations) > 1:
        raise UmbelError(f"this upload needs its population: add ?population= with one of {identity.scope}")
    return next(iter(identity.populations), "")
