"""Commands to devices: send them, show one."""

from typing import Literal, cast

import msgspec
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from umbel.errors import UmbelError
from umbel.messages import Blob, Body, Cancel, Export, Infer, Install, PersonalVariant, Report, Variant
from umbel.plan import PLACED
from umbel_server import answers
from umbel_server.api.access import Asking, operator, server_of, viewer
from umbel_server.api.bodies import body_of
from umbel_server.api.documented import takes
from umbel_server.api.guarded import by, guarded, note
from umbel_server.api.scope import check_blobs, check_population, command_in_scope
from umbel_server.commands import outbox
from umbel_server.devices import register as devices
from umbel_server.security.admins import Identity
from umbel_server.server import Server

router = guarded("commands")

COMMAND_TTL, LONGEST_TTL = 600.0, 366 * 86_400.0


class CommandRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Commands for some devices of a population, or for all (`devices` empty), expiring after `ttl` seconds."""

    population: str
    kind: Literal["install", "infer", "export", "report", "cancel"]
    devices: list[str] = []
    ttl: float = COMMAND_TTL
    release: str = ""
    variant: Variant = "float32"
    inputs: str = ""
    plan: str = ""
    assignment: str = ""


@router.post("/v1/commands", dependencies=by(operator("command.send")), openapi_extra=takes(CommandRequest))
async def send_commands(request: Request, who: Asking) -> list[answers.Command]:
    """Put commands into the outbox and publish them; returns them as they are now."""
    wanted = msgspec.json.decode(await body_of(request), type=CommandRequest)
    about = {"release": wanted.release, "variant": wanted.variant} if wanted.release else {}
    note(request, wanted.kind, wanted.population, devices=wanted.devices or "all", **about)
    sent = await run_in_threadpool(_send_commands, server_of(request), who, wanted)
    note(request, commands=[command.id for command in sent], count=len(sent))
    return sent


def _send_commands(server: Server, who: Identity, wanted: CommandRequest) -> list[answers.Command]:
    check_population(who, wanted.population)
    if not 0 < wanted.ttl <= LONGEST_TTL:
        raise UmbelError(f"a command's ttl is a number of seconds above 0, 366 days at most; got {wanted.ttl:g}")
    body = _command_body(server, who, wanted)
    if wanted.devices:
        names = [server.devices.get(wanted.population, name).id for name in wanted.devices]
    else:
        listed = server.devices.list(wanted.population)
        names = [device.id for device in listed if device.state == devices.ACTIVE]
    if not names:
        raise UmbelError(f"population {wanted.population} has no devices that take part; see 'umbel devices list'")
    with server.database.transaction() as session:
        for name in names:
            device = server.devices.row(session, wanted.population, name)
            if device.state != devices.ACTIVE:
                raise devices.Barred(wanted.population, name, device.state, device.state_reason)
        if (blob := _blob_of(body)) is not None:
            server.ownership.claim(session, wanted.population, blob)
        commands = server.outbox.add_all(session, [(wanted.population, name, body, wanted.ttl) for name in names])
    server.exchange.send(commands)
    return [outbox.describe(server.outbox.get(command.id)) for command in commands]


def _command_body(server: Server, who: Identity, wanted: CommandRequest) -> Body:
    match wanted.kind:
        case "install":
            return server.releases.install(wanted.release, wanted.variant, who.populations)
        case "infer":
            check_blobs(server, who, wanted.inputs)
            data = server.blobs.get(wanted.inputs)
            return Infer(Blob.of(data))
        case "export":
            check_blobs(server, who, wanted.plan)
            return Export(server.plans.blob(server.plans.get(wanted.plan)), _personal(wanted.variant))
        case "report":
            return Report()
        case "cancel":
            return Cancel(wanted.assignment)


def _blob_of(body: Body) -> Blob | None:
    match body:
        case Install(model=blob) | Infer(inputs=blob) | Export(plan=blob):
            return blob
    return None


def _personal(variant: Variant) -> PersonalVariant:
    if variant in PLACED:
        return cast(PersonalVariant, variant)
    raise UmbelError(f"a device makes float32 and int8 files itself; {variant} is made on the server, in a release")


@router.get("/v1/commands/{id}", dependencies=by(viewer()))
def show_command(request: Request, id: str) -> answers.Command:
    """One command: its state, reason and outcome."""
    return outbox.describe(command_in_scope(request, id))
