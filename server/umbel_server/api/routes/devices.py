"""Devices: list and show them, and decide about one."""

import msgspec
from fastapi import Request
from msgspec.structs import asdict
from starlette.concurrency import run_in_threadpool

from umbel.topics import check_name
from umbel_server import answers
from umbel_server.api.access import Asking, operator, owner, server_of, viewer
from umbel_server.api.bodies import body_of
from umbel_server.api.documented import takes
from umbel_server.api.guarded import by, guarded
from umbel_server.api.scope import device_in_scope
from umbel_server.commands import outbox
from umbel_server.devices import register as devices

DEVICE = "/v1/devices/{population}/{device}"

router = guarded("devices")


class Because(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The reason for a decision; the device is told."""

    reason: str = ""


class Name(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device's name for people; empty for none."""

    name: str


class Labels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Labels to set, and names of set labels to remove."""

    labels: dict[str, str] = {}
    remove: list[str] = []


@router.get("/v1/devices", dependencies=by(viewer()))
def list_devices(request: Request, who: Asking, population: str | None = None) -> list[answers.Device]:
    """Every device, or those of one population."""
    if population is not None:
        check_name(population, "a population")
    found = server_of(request).devices.list(population)
    return [devices.describe(device) for device in found if who.sees(device.population)]


@router.get(DEVICE, dependencies=by(viewer()))
def show_device(request: Request, population: str, device: str) -> answers.DeviceDetails:
    """One device, with its latest commands."""
    row = device_in_scope(request, population, device)
    latest = server_of(request).outbox.latest(population, device)
    return answers.DeviceDetails(
        **asdict(devices.describe(row)),
        refused=server_of(request).refusals.of(f"{population}/{device}"),
        commands=[outbox.describe(command) for command in latest],
    )


@router.post(f"{DEVICE}/readmit", dependencies=by(operator("device.readmit")))
def readmit_device(request: Request, population: str, device: str) -> answers.Device:
    """End a device's quarantine, and count its rejections from 0 again."""
    device_in_scope(request, population, device)
    return devices.describe(server_of(request).devices.readmit(population, device))


@router.post(f"{DEVICE}/suspend", dependencies=by(operator("device.suspend")), openapi_extra=takes(Because, False))
async def suspend(request: Request, population: str, device: str) -> answers.Device:
    """Suspend a device: it gets no work until it is resumed."""
    await run_in_threadpool(device_in_scope, request, population, device)
    asked = msgspec.json.decode(await body_of(request) or b"{}", type=Because)
    lifecycle = server_of(request).lifecycle
    return devices.describe(await run_in_threadpool(lifecycle.suspend, population, device, asked.reason))


@router.post(f"{DEVICE}/resume", dependencies=by(operator("device.resume")))
def resume(request: Request, population: str, device: str) -> answers.Device:
    """Resume a suspended device."""
    device_in_scope(request, population, device)
    return devices.describe(server_of(request).lifecycle.resume(population, device))


@router.post(f"{DEVICE}/revoke", dependencies=by(owner("device.revoke")), openapi_extra=takes(Because, False))
async def revoke(request: Request, population: str, device: str) -> answers.Device:
    """Revoke a device and its key for good."""
    await run_in_threadpool(device_in_scope, request, population, device)
    asked = msgspec.json.decode(await body_of(request) or b"{}", type=Because)
    lifecycle = server_of(request).lifecycle
    return devices.describe(await run_in_threadpool(lifecycle.revoke, population, device, asked.reason))


@router.post(f"{DEVICE}/rename", dependencies=by(operator("device.rename")), openapi_extra=takes(Name))
async def rename(request: Request, population: str, device: str) -> answers.Device:
    """Set the name that people see."""
    await run_in_threadpool(device_in_scope, request, population, device)
    asked = msgspec.json.decode(await body_of(request), type=Name)
    return devices.describe(
        await run_in_threadpool(server_of(request).lifecycle.rename, population, device, asked.name)
    )


@router.post(f"{DEVICE}/label", dependencies=by(operator("device.label")), openapi_extra=takes(Labels))
async def label(request: Request, population: str, device: str) -> answers.Device:
    """Set and remove labels that win over the device's own."""
    await run_in_threadpool(device_in_scope, request, population, device)
    asked = msgspec.json.decode(await body_of(request), type=Labels)
    lifecycle = server_of(request).lifecycle
    return devices.describe(await run_in_threadpool(lifecycle.label, population, device, asked.labels, asked.remove))


@router.post(f"{DEVICE}/delete", dependencies=by(owner("device.delete")))
def delete(request: Request, population: str, device: str) -> answers.DeletedDevice:
    """Remove a device that is revoked, or was never online, from the register."""
    device_in_scope(request, population, device)
    server_of(request).lifecycle.delete(population, device)
    return answers.DeletedDevice(population, device, devices.DELETED)
