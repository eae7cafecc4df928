"""What an administrator may see: the devices, commands, runs and releases of its populations, as if there were no others.

Blobs belong to no population: whoever knows a blob's address, which is its digest, has seen what it is in.
"""

from fastapi import Request

from umbel_server.admins import Identity
from umbel_server.api.access import identity_of, server_of
from umbel_server.api.errors import UnknownPopulation
from umbel_server.api.guarded import note
from umbel_server.database import Command, Device, Release, Run
from umbel_server.devices import UnknownDevice


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
            f"no population {population[:64]!r} is known to {identity.name}, who sees {identity.scope}"
        )
