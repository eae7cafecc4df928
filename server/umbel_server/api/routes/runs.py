"""Runs: start, watch, pause, resume, stop and clone them."""

from typing import Annotated, Any

import msgspec
from fastapi import Query, Request
from starlette.concurrency import run_in_threadpool

from umbel.messages import MOST_COUNT
from umbel_server import answers
from umbel_server.api.access import Asking, operator, server_of, viewer
from umbel_server.api.bodies import body_of
from umbel_server.api.documented import takes
from umbel_server.api.guarded import by, guarded, note
from umbel_server.api.scope import check_blobs, check_population, run_in_scope
from umbel_server.runs import views as run_views
from umbel_server.runs.settings import RunSettings
from umbel_server.security.admins import Identity
from umbel_server.server import Server

router = guarded("runs")

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
    """Changes to the settings of the cloned run, by name; `policy` holds the changes to the round policy."""

    settings: dict[str, Any] = {}
    from_run: str = ""
    from_round: RoundNumber | None = None


@router.post("/v1/runs", dependencies=by(operator("run.start")), openapi_extra=takes(RunRequest))
async def start_run(request: Request, who: Asking) -> answers.Run:
    """Start a run."""
    wanted = msgspec.json.decode(await body_of(request), type=RunRequest)
    note(request, population=wanted.population, plan=wanted.plan, strategy=wanted.settings.strategy)
    row = await run_in_threadpool(_start_run, server_of(request), who, wanted)
    note(request, row.id)
    return row


def _start_run(server: Server, who: Identity, wanted: RunRequest) -> answers.Run:
    check_population(who, wanted.population)
    check_blobs(server, who, wanted.plan, wanted.settings.held_out)
    weights = _weights(server, who, wanted)
    return run_views.describe(server.runs.start(wanted.population, wanted.plan, wanted.settings, weights))


def _weights(server: Server, who: Identity, wanted: RunRequest | CloneRequest) -> str:
    if not wanted.from_run:
        return ""
    return server.runs.checkpoint(server.runs.get(wanted.from_run, who.populations).id, wanted.from_round).weights


@router.get("/v1/runs", dependencies=by(viewer()))
def list_runs(request: Request, who: Asking) -> list[answers.Run]:
    """Every run, newest first."""
    return [run_views.describe(row) for row in server_of(request).runs.list(who.populations)]


@router.get("/v1/runs/{id}", dependencies=by(viewer()))
def show_run(request: Request, id: str, round: RoundAsked = None) -> answers.RunDetails:
    """One run with its checkpoints, and with the assignments of one round (default: the newest)."""
    return server_of(request).runs.show(run_in_scope(request, id).id, round)


@router.get("/v1/runs/{id}/live", dependencies=by(viewer()))
def watch_run(request: Request, id: str, after: RoundAsked = None) -> answers.LiveRun:
    """Show a run's progress; cheap enough to poll. Its checkpoints are those after round `after`, or the newest."""
    return server_of(request).run_progress.look(run_in_scope(request, id), after)


@router.post("/v1/runs/{id}/stop", dependencies=by(operator("run.stop")))
def stop_run(request: Request, id: str) -> answers.Run:
    """Stop a run for good; its checkpoints stay."""
    return run_views.describe(server_of(request).runs.stop(run_in_scope(request, id).id))


@router.post("/v1/runs/{id}/pause", dependencies=by(operator("run.pause")))
def pause_run(request: Request, id: str) -> answers.Run:
    """Pause a run; received updates are kept."""
    return run_views.describe(server_of(request).runs.pause(run_in_scope(request, id).id))


@router.post("/v1/runs/{id}/resume", dependencies=by(operator("run.resume")))
def resume_run(request: Request, id: str) -> answers.Run:
    """Resume a paused run."""
    return run_views.describe(server_of(request).runs.resume(run_in_scope(request, id).id))


@router.post("/v1/runs/{id}/clone", dependencies=by(operator("run.clone")), openapi_extra=takes(CloneRequest, False))
async def clone_run(request: Request, who: Asking, id: str) -> answers.Run:
    """Start a run with the settings of another run and some changes."""
    wanted = msgspec.json.decode(await body_of(request) or b"{}", type=CloneRequest)
    run = await run_in_threadpool(run_in_scope, request, id)
    row = await run_in_threadpool(_clone_run, server_of(request), who, run.id, wanted)
    note(request, row.id, cloned=run.id, changed=sorted(wanted.settings))
    return row


def _clone_run(server: Server, who: Identity, id: str, wanted: CloneRequest) -> answers.Run:
    check_blobs(server, who, str(wanted.settings.get("held_out", "")))
    return run_views.describe(server.runs.clone(id, wanted.settings, _weights(server, who, wanted)))
