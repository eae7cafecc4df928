"""Commands to devices: send them, show one."""

from functools import partial
from typing import Literal, cast

import msgspec
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from umbel.errors import UmbelError
from umbel.messages import Body, blobs_of
from umbel_server import answers
from umbel_server.api.access import Asking, operator, server_of, viewer
from umbel_server.api.bodies import body_of
from umbel_server.api.documented import takes
from umbel_server.api.guarded import by, guarded, note
from umbel_server.api.scope import check_blobs, check_population, command_in_scope
from umbel_server.commands import outbox
from umbel_server.commands.kinds import SENDABLE, Sources
from umbel_server.devices import register as devices
from umbel_server.security.admins import Identity
from umbel_server.server import Server

router = guarded("commands")

COMMAND_TTL, LONGEST_TTL = 600.0, 366 * 86_400.0


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    """Commands for some devices of a population, or for all (`devices` empty), expiring after `ttl` seconds."""

    population: str
    kind: str
    devices: list[str] = []
    ttl: float = COMMAND_TTL


def _request_type() -> type[_Request]:
    """The struct of a request for commands: it has the fields of every kind, and a request uses those of its kind."""
    kind = ("kind", Literal[tuple(SENDABLE)], msgspec.NODEFAULT)
    fields = {field.name: field for kind in SENDABLE.values() for field in kind.request_fields}
    made = msgspec.defstruct(
        "CommandRequest",
        [kind, *((field.name, field.type, field.default) for field in fields.values())],
        bases=(_Request,),
        namespace={"__doc__": _Request.__doc__},
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )
    return cast(type[_Request], made)


CommandRequest = _request_type()


@router.post("/v1/commands", dependencies=by(operator("command.send")), openapi_extra=takes(CommandRequest))
async def send_commands(request: Request, who: Asking) -> list[answers.Command]:
    """Put commands into the outbox and publish them; returns them as they are now."""
    wanted = msgspec.json.decode(await body_of(request), type=CommandRequest)
    fields = SENDABLE[wanted.kind].request_fields
    audited = {field.name: getattr(wanted, field.name) for field in fields if field.option.audited}
    note(request, wanted.kind, wanted.population, devices=wanted.devices or "all", **audited)
    sent = await run_in_threadpool(_send_commands, server_of(request), who, wanted)
    note(request, commands=[command.id for command in sent], count=len(sent))
    return sent


def _send_commands(server: Server, who: Identity, wanted: _Request) -> list[answers.Command]:
    check_population(who, wanted.population)
    if not 0 < wanted.ttl <= LONGEST_TTL:
        raise UmbelError(f"a command's ttl is a number of seconds above 0, 366 days at most; got {wanted.ttl:g}")
    body = _body(server, who, wanted)
    if wanted.devices:
        names = [server.devices.get(wanted.population, name).id for name in wanted.devices]
    else:
        listed = server.devices.list(wanted.population)
        names = [device.id for device in listed if device.state == devices.ACTIVE]
    if not names:
        raise UmbelError(f"population {wanted.population} has no active devices; see 'umbel devices list'")
    with server.database.transaction() as session:
        for name in names:
            device = server.devices.row(session, wanted.population, name)
            if device.state != devices.ACTIVE:
                raise devices.Barred(wanted.population, name, device.state, device.state_reason)
        server.ownership.claim(session, wanted.population, *blobs_of(body))
        commands = server.outbox.add_all(session, [(wanted.population, name, body, wanted.ttl) for name in names])
    server.exchange.send(commands)
    return [outbox.describe(server.outbox.get(command.id)) for command in commands]


def _body(server: Server, who: Identity, wanted: _Request) -> Body:
    kind = SENDABLE[wanted.kind]
    assert kind.request is not None
    sources = Sources(server.releases, server.plans, server.blobs, who.populations, partial(check_blobs, server, who))
    return kind.request(**{field.name: getattr(wanted, field.name) for field in kind.request_fields}).body(sources)


@router.get("/v1/commands/{id}", dependencies=by(viewer()))
def show_command(request: Request, id: str) -> answers.Command:
    """One command: its state, reason and outcome."""
    return outbox.describe(command_in_scope(request, id))
