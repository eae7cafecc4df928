"""What administrators ask of the server: devices, commands, plans, runs, releases."""

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool

from umbel.errors import UmbelError
from umbel.examples import Examples, load_arrays
from umbel.messages import MOST_COUNT, Blob, Body, Cancel, Export, Infer, PersonalVariant, Report, Variant
from umbel.plan import PLACED
from umbel.tensors import TensorSpec
from umbel_server import devices, outbox, releases, runs
from umbel_server.api.access import require_admin, server_of
from umbel_server.api.device_routes import body_of
from umbel_server.run_settings import RunSettings
from umbel_server.server import Server
from umbel_server.variants import WITHOUT_EXAMPLES

public = APIRouter(tags=["server"])
router = APIRouter(tags=["admin"], dependencies=[Depends(require_admin)])

COMMAND_TTL = 600.0

RoundAsked = Annotated[int | None, Query(ge=-1, le=MOST_COUNT)]
RoundNumber = Annotated[int, msgspec.Meta(ge=0, le=MOST_COUNT)]


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


class RunRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run to start: the plan's digest, the population, and how to train.

    It starts from the plan's initial weights, or from a checkpoint of `from_run`: of `from_round`, or the newest.
    """

    population: str
    plan: str
    settings: RunSettings = RunSettings()
    from_run: str = ""
    from_round: RoundNumber | None = None


class CloneRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Changes to the settings of a run that is started again, by their names; those of the round policy in `policy`."""

    settings: dict[str, Any] = {}
    from_run: str = ""
    from_round: RoundNumber | None = None


class ReleaseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The checkpoint to release - of `round`, or the newest - and its files.

    `examples` and `representative` are digests of `.npz` files: what the files are measured on (default: what the run
    held out), and what int8-full is calibrated on. `keras` are Keras's metrics on the same examples, computed elsewhere.
    """

    round: RoundNumber | None = None
    variants: tuple[Variant, ...] = WITHOUT_EXAMPLES
    examples: str = ""
    representative: str = ""
    keras: dict[str, float] = {}


@public.get("/v1/health")
async def health(request: Request) -> dict[str, Any]:
    """Whether the server answers, and whether it has its broker: at once, also when every thread waits for the database."""
    return {"ok": True, "broker": server_of(request).exchange.is_up}


@router.get("/v1/devices")
def list_devices(request: Request, population: str | None = None) -> list[dict[str, Any]]:
    """Every device, or those of one population."""
    return [devices.describe(device) for device in server_of(request).devices.list(population)]


@router.get("/v1/devices/{population}/{device}")
def show_device(request: Request, population: str, device: str) -> dict[str, Any]:
    """One device, with its latest commands."""
    server = server_of(request)
    latest = server.outbox.latest(population, device)
    return {
        **devices.describe(server.devices.get(population, device)),
        "commands": [outbox.describe(command) for command in latest],
    }


@router.post("/v1/devices/{population}/{device}/readmit")
def readmit_device(request: Request, population: str, device: str) -> dict[str, Any]:
    """End a device's quarantine, and count its rejections from 0 again."""
    return devices.describe(server_of(request).devices.readmit(population, device))


@router.post("/v1/commands")
async def send_commands(request: Request) -> list[dict[str, Any]]:
    """Put commands into the outbox and publish them; returns them as they are now."""
    wanted = msgspec.json.decode(await body_of(request), type=CommandRequest)
    return await run_in_threadpool(_send_commands, server_of(request), wanted)


def _send_commands(server: Server, wanted: CommandRequest) -> list[dict[str, Any]]:
    if not wanted.ttl > 0:
        raise UmbelError(f"a command's ttl is a positive number of seconds, got {wanted.ttl}")
    body = _command_body(server, wanted)
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
        commands = [server.outbox.add(session, wanted.population, name, body, wanted.ttl) for name in names]
    server.exchange.send(commands)
    return [outbox.describe(server.outbox.get(command.id)) for command in commands]


def _command_body(server: Server, wanted: CommandRequest) -> Body:
    match wanted.kind:
        case "install":
            return server.releases.install(wanted.release, wanted.variant)
        case "infer":
            data = server.blobs.get(wanted.inputs)
            return Infer(Blob.of(data))
        case "export":
            return Export(server.plans.blob(server.plans.get(wanted.plan)), _personal(wanted.variant))
        case "report":
            return Report()
        case "cancel":
            return Cancel(wanted.assignment)


def _personal(variant: Variant) -> PersonalVariant:
    if variant in PLACED:
        return cast(PersonalVariant, variant)
    raise UmbelError(f"a device makes float32 and int8 files itself; {variant} is made on the server, in a release")


@router.get("/v1/commands/{id}")
def show_command(request: Request, id: str) -> dict[str, Any]:
    """One command: its state, reason and outcome."""
    return outbox.describe(server_of(request).outbox.get(id))


@router.post("/v1/plans")
async def add_plan(request: Request) -> dict[str, Any]:
    """Check, sign and store the bundle in the body."""
    server = server_of(request)
    limit = server.state.config.max_blob_mb * 1_000_000
    with tempfile.NamedTemporaryFile(suffix=".plan") as file:
        total = 0
        async for chunk in request.stream():
            if (total := total + len(chunk)) > limit:
                raise UmbelError(f"a plan may have at most {limit} bytes; this upload is larger")
            file.write(chunk)
        file.flush()
        plan = await run_in_threadpool(server.plans.add, Path(file.name))
    return {"plan": plan.sha256, "task": plan.manifest.task, "metrics": plan.manifest.metric_names}


@router.post("/v1/runs")
async def start_run(request: Request) -> dict[str, Any]:
    """Start a run."""
    server = server_of(request)
    wanted = msgspec.json.decode(await body_of(request), type=RunRequest)
    return await run_in_threadpool(_start_run, server, wanted)


def _start_run(server: Server, wanted: RunRequest) -> dict[str, Any]:
    weights = _weights(server, wanted)
    return runs.describe(server.runs.start(wanted.population, wanted.plan, wanted.settings, weights))


def _weights(server: Server, wanted: RunRequest | CloneRequest) -> str:
    return server.runs.checkpoint(wanted.from_run, wanted.from_round).weights if wanted.from_run else ""


@router.get("/v1/runs")
def list_runs(request: Request) -> list[dict[str, Any]]:
    """Every run, newest first."""
    return [runs.describe(row) for row in server_of(request).runs.list()]


@router.get("/v1/runs/{id}")
def show_run(request: Request, id: str, round: RoundAsked = None) -> dict[str, Any]:
    """One run with its checkpoints, and with the assignments of one round (default: the newest)."""
    return server_of(request).runs.show(id, round)


@router.get("/v1/runs/{id}/live")
def watch_run(request: Request, id: str, after: RoundAsked = None) -> dict[str, Any]:
    """What is going on in a run now, for those who ask often; its checkpoints are those after round `after`, or the newest."""
    server = server_of(request)
    run = server.runs.get(id)
    return {**runs.describe(run), **server.live.look(run, after)}


@router.post("/v1/runs/{id}/stop")
def stop_run(request: Request, id: str) -> dict[str, Any]:
    """Stop a run for good; its checkpoints stay."""
    return runs.describe(server_of(request).runs.stop(id))


@router.post("/v1/runs/{id}/pause")
def pause_run(request: Request, id: str) -> dict[str, Any]:
    """Pause a run until it is resumed; updates that came are kept."""
    return runs.describe(server_of(request).runs.pause(id))


@router.post("/v1/runs/{id}/resume")
def resume_run(request: Request, id: str) -> dict[str, Any]:
    """Go on with a paused run."""
    return runs.describe(server_of(request).runs.resume(id))


@router.post("/v1/runs/{id}/clone")
async def clone_run(request: Request, id: str) -> dict[str, Any]:
    """Start a run with the settings of another, with some of them changed."""
    server = server_of(request)
    wanted = msgspec.json.decode(await body_of(request) or b"{}", type=CloneRequest)
    return await run_in_threadpool(_clone_run, server, id, wanted)


def _clone_run(server: Server, id: str, wanted: CloneRequest) -> dict[str, Any]:
    return runs.describe(server.runs.clone(id, wanted.settings, _weights(server, wanted)))


@router.post("/v1/runs/{id}/releases")
async def export_release(request: Request, id: str) -> dict[str, Any]:
    """Export a release from a checkpoint of the run."""
    server = server_of(request)
    wanted = msgspec.json.decode(await body_of(request) or b"{}", type=ReleaseRequest)
    return await run_in_threadpool(_export, server, id, wanted)


def _export(server: Server, id: str, asked: ReleaseRequest) -> dict[str, Any]:
    run = server.runs.get(id)
    plan = server.plans.get(run.plan)
    checkpoint = server.runs.checkpoint(id, asked.round)
    held_out = asked.examples or run.settings.get("held_out", "")
    inputs, targets = plan.manifest.inputs, plan.manifest.targets
    examples = _arrays(server, held_out, {**inputs, **targets}, runs.HELD_OUT)
    representative = _arrays(server, asked.representative, inputs, "the representative set")
    rows = representative.tensors if representative is not None else None
    wanted = releases.Wanted(asked.variants, examples, rows, asked.keras)
    return releases.describe(server.releases.export(run, checkpoint, plan, wanted))


def _arrays(server: Server, address: str, specs: Mapping[str, TensorSpec], what: str) -> Examples | None:
    return load_arrays(io.BytesIO(server.blobs.get(address)), specs, what) if address else None


@router.get("/v1/releases")
def list_releases(request: Request) -> list[dict[str, Any]]:
    """Every release, newest first."""
    return [releases.describe(row) for row in server_of(request).releases.list()]


@router.get("/v1/releases/{id}")
def show_release(request: Request, id: str) -> dict[str, Any]:
    """One release, with its signed manifest."""
    row = server_of(request).releases.get(id)
    return {**releases.describe(row), "manifest": row.manifest.decode()}
