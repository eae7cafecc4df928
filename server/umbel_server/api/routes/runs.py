"""What administrators ask of the server: devices, plans, runs, releases."""

import io
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import Query, Request
from starlette.concurrency import run_in_threadpool

from umbel.errors import UmbelError
from umbel.examples import Examples, load_arrays
from umbel.messages import MOST_COUNT, Variant
from umbel.plan import Plan
from umbel.tensors import TensorSpec
from umbel.topics import check_name
from umbel_server.api.access import Asking, everybody, operator, server_of, viewer
from umbel_server.api.documented import takes, takes_bytes
from umbel_server.api.guarded import by, guarded, note
from umbel_server.api.routes.blobs import announced, body_of, counted
from umbel_server.api.scope import (
    check_blobs,
    check_population,
    device_in_scope,
    population_of_upload,
    release_in_scope,
    run_in_scope,
)
from umbel_server.commands import outbox
from umbel_server.devices import register as devices
from umbel_server.models import releases
from umbel_server.models.variants import WITHOUT_EXAMPLES
from umbel_server.runs import runs
from umbel_server.runs import views as run_views
from umbel_server.runs.settings import RunSettings
from umbel_server.security.admins import Identity
from umbel_server.server import Server
from umbel_server.storage.database import Run

public = guarded("server")
router = guarded("admin")

RoundAsked = Annotated[int | None, Query(ge=-1, le=MOST_COUNT)]
RoundNumber = Annotated[int, msgspec.Meta(ge=0, le=MOST_COUNT)]


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


@public.get("/v1/health", dependencies=by(everybody()))
async def health(request: Request) -> dict[str, Any]:
    """Whether the server answers, and whether it has its broker: at once, also when every thread waits for the database."""
    return {"ok": True, "broker": server_of(request).exchange.is_up}


@router.get("/v1/devices", dependencies=by(viewer()))
def list_devices(request: Request, who: Asking, population: str | None = None) -> list[dict[str, Any]]:
    """Every device, or those of one population."""
    if population is not None:
        check_name(population, "a population")
    found = server_of(request).devices.list(population)
    return [devices.describe(device) for device in found if who.sees(device.population)]


@router.get("/v1/devices/{population}/{device}", dependencies=by(viewer()))
def show_device(request: Request, population: str, device: str) -> dict[str, Any]:
    """One device, with its latest commands."""
    row = device_in_scope(request, population, device)
    latest = server_of(request).outbox.latest(population, device)
    return {
        **devices.describe(row),
        "refused": server_of(request).refusals.of(f"{population}/{device}"),
        "commands": [outbox.describe(command) for command in latest],
    }


@router.post("/v1/devices/{population}/{device}/readmit", dependencies=by(operator("device.readmit")))
def readmit_device(request: Request, population: str, device: str) -> dict[str, Any]:
    """End a device's quarantine, and count its rejections from 0 again."""
    device_in_scope(request, population, device)
    return devices.describe(server_of(request).devices.readmit(population, device))


@router.post("/v1/plans", dependencies=by(operator("plan.add")), openapi_extra=takes_bytes())
async def add_plan(request: Request, who: Asking) -> dict[str, Any]:
    """Check, sign and store the bundle in the body; it belongs to the query's `population`, or to those where it is run."""
    server = server_of(request)
    population = population_of_upload(request)
    limit = server.state.config.max_blob_mb * 1_000_000
    size, total = announced(request, limit), 0
    with ExitStack() as stack:
        moving = None
        if population:
            await run_in_threadpool(stack.enter_context, server.quotas.storing(population, size))
            if who.populations:
                moving = stack.enter_context(server.quotas.moving(population, "up", size))
        file = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".plan"))
        async for chunk in counted(request.stream(), moving):
            if (total := total + len(chunk)) > limit:
                raise UmbelError(f"a plan may have at most {limit} bytes; this upload is larger")
            file.write(chunk)
        file.flush()
        plan = await run_in_threadpool(_add_plan, server, population, Path(file.name))
    note(request, plan.sha256, population, task=plan.manifest.task)
    return {"plan": plan.sha256, "task": plan.manifest.task, "metrics": plan.manifest.metric_names}


def _add_plan(server: Server, population: str, path: Path) -> Plan:
    plan = server.plans.add(path)
    if population:
        with server.database.transaction() as session:
            server.holdings.claim(session, population, server.plans.blob(plan))
    return plan


@router.post("/v1/runs", dependencies=by(operator("run.start")), openapi_extra=takes(RunRequest))
async def start_run(request: Request, who: Asking) -> dict[str, Any]:
    """Start a run."""
    wanted = msgspec.json.decode(await body_of(request), type=RunRequest)
    note(request, population=wanted.population, plan=wanted.plan, strategy=wanted.settings.strategy)
    row = await run_in_threadpool(_start_run, server_of(request), who, wanted)
    note(request, row["id"])
    return row


def _start_run(server: Server, who: Identity, wanted: RunRequest) -> dict[str, Any]:
    check_population(who, wanted.population)
    check_blobs(server, who, wanted.plan, wanted.settings.held_out)
    weights = _weights(server, who, wanted)
    return run_views.describe(server.runs.start(wanted.population, wanted.plan, wanted.settings, weights))


def _weights(server: Server, who: Identity, wanted: RunRequest | CloneRequest) -> str:
    if not wanted.from_run:
        return ""
    return server.runs.checkpoint(server.runs.get(wanted.from_run, who.populations).id, wanted.from_round).weights


@router.get("/v1/runs", dependencies=by(viewer()))
def list_runs(request: Request, who: Asking) -> list[dict[str, Any]]:
    """Every run, newest first."""
    return [run_views.describe(row) for row in server_of(request).runs.list(who.populations)]


@router.get("/v1/runs/{id}", dependencies=by(viewer()))
def show_run(request: Request, id: str, round: RoundAsked = None) -> dict[str, Any]:
    """One run with its checkpoints, and with the assignments of one round (default: the newest)."""
    return server_of(request).runs.show(run_in_scope(request, id).id, round)


@router.get("/v1/runs/{id}/live", dependencies=by(viewer()))
def watch_run(request: Request, id: str, after: RoundAsked = None) -> dict[str, Any]:
    """What is going on in a run now, for those who ask often; its checkpoints are those after round `after`, or the newest."""
    run = run_in_scope(request, id)
    return {**run_views.describe(run), **server_of(request).live.look(run, after)}


@router.post("/v1/runs/{id}/stop", dependencies=by(operator("run.stop")))
def stop_run(request: Request, id: str) -> dict[str, Any]:
    """Stop a run for good; its checkpoints stay."""
    return run_views.describe(server_of(request).runs.stop(run_in_scope(request, id).id))


@router.post("/v1/runs/{id}/pause", dependencies=by(operator("run.pause")))
def pause_run(request: Request, id: str) -> dict[str, Any]:
    """Pause a run until it is resumed; updates that came are kept."""
    return run_views.describe(server_of(request).runs.pause(run_in_scope(request, id).id))


@router.post("/v1/runs/{id}/resume", dependencies=by(operator("run.resume")))
def resume_run(request: Request, id: str) -> dict[str, Any]:
    """Go on with a paused run."""
    return run_views.describe(server_of(request).runs.resume(run_in_scope(request, id).id))


@router.post("/v1/runs/{id}/clone", dependencies=by(operator("run.clone")), openapi_extra=takes(CloneRequest, False))
async def clone_run(request: Request, who: Asking, id: str) -> dict[str, Any]:
    """Start a run with the settings of another, with some of them changed."""
    wanted = msgspec.json.decode(await body_of(request) or b"{}", type=CloneRequest)
    run = await run_in_threadpool(run_in_scope, request, id)
    row = await run_in_threadpool(_clone_run, server_of(request), who, run.id, wanted)
    note(request, row["id"], cloned=run.id, changed=sorted(wanted.settings))
    return row


def _clone_run(server: Server, who: Identity, id: str, wanted: CloneRequest) -> dict[str, Any]:
    check_blobs(server, who, str(wanted.settings.get("held_out", "")))
    return run_views.describe(server.runs.clone(id, wanted.settings, _weights(server, who, wanted)))


@router.post(
    "/v1/runs/{id}/releases", dependencies=by(operator("release.export")), openapi_extra=takes(ReleaseRequest, False)
)
async def export_release(request: Request, who: Asking, id: str) -> dict[str, Any]:
    """Export a release from a checkpoint of the run."""
    wanted = msgspec.json.decode(await body_of(request) or b"{}", type=ReleaseRequest)
    run = await run_in_threadpool(run_in_scope, request, id)
    row = await run_in_threadpool(_export, server_of(request), who, run, wanted)
    note(request, row["id"], run=run.id, round=row["round"], variants=list(wanted.variants))
    return row


def _export(server: Server, who: Identity, run: Run, asked: ReleaseRequest) -> dict[str, Any]:
    check_blobs(server, who, asked.examples, asked.representative)
    plan = server.plans.get(run.plan)
    checkpoint = server.runs.checkpoint(run.id, asked.round)
    held_out = asked.examples or run.settings.get("held_out", "")
    inputs, targets = plan.manifest.inputs, plan.manifest.targets
    examples = _arrays(server, held_out, {**inputs, **targets}, runs.HELD_OUT)
    representative = _arrays(server, asked.representative, inputs, "the representative set")
    rows = representative.tensors if representative is not None else None
    wanted = releases.Wanted(asked.variants, examples, rows, asked.keras)
    return releases.describe(server.releases.export(run, checkpoint, plan, wanted))


def _arrays(server: Server, address: str, specs: Mapping[str, TensorSpec], what: str) -> Examples | None:
    return load_arrays(io.BytesIO(server.blobs.get(address)), specs, what) if address else None


@router.get("/v1/releases", dependencies=by(viewer()))
def list_releases(request: Request, who: Asking) -> list[dict[str, Any]]:
    """Every release, newest first."""
    return [releases.describe(row) for row in server_of(request).releases.list(who.populations)]


@router.get("/v1/releases/{id}", dependencies=by(viewer()))
def show_release(request: Request, id: str) -> dict[str, Any]:
    """One release, with its signed manifest."""
    row = release_in_scope(request, id)
    return {**releases.describe(row), "manifest": row.manifest.decode()}
