"""Releases: export one from a run, list and show them."""

import io
from collections.abc import Mapping
from typing import Annotated

import msgspec
from fastapi import Request
from msgspec.structs import asdict
from starlette.concurrency import run_in_threadpool

from umbel.examples import Examples, load_arrays
from umbel.messages import MOST_COUNT, Variant
from umbel.tensors import TensorSpec
from umbel_server import answers
from umbel_server.api.access import Asking, operator, server_of, viewer
from umbel_server.api.bodies import body_of
from umbel_server.api.documented import takes
from umbel_server.api.guarded import by, guarded, note
from umbel_server.api.scope import check_blobs, release_in_scope, run_in_scope
from umbel_server.models import releases
from umbel_server.models.held_out import HELD_OUT
from umbel_server.models.variants import WITHOUT_EXAMPLES
from umbel_server.security.admins import Identity
from umbel_server.server import Server
from umbel_server.storage.database import Run

router = guarded("releases")


class ReleaseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The checkpoint to release - of `round`, or the newest - and its files.

    `examples` and `representative` are digests of `.npz` files. The files are measured on `examples` (default: the run's
    held-out examples), and int8-full is calibrated on `representative`. `keras` are Keras's metrics on the same examples,
    computed elsewhere.
    """

    round: Annotated[int, msgspec.Meta(ge=0, le=MOST_COUNT)] | None = None
    variants: tuple[Variant, ...] = WITHOUT_EXAMPLES
    examples: str = ""
    representative: str = ""
    keras: dict[str, float] = {}


@router.post(
    "/v1/runs/{id}/releases", dependencies=by(operator("release.export")), openapi_extra=takes(ReleaseRequest, False)
)
async def export_release(request: Request, who: Asking, id: str) -> answers.Release:
    """Export a release from a checkpoint of the run."""
    wanted = msgspec.json.decode(await body_of(request) or b"{}", type=ReleaseRequest)
    run = await run_in_threadpool(run_in_scope, request, id)
    row = await run_in_threadpool(_export, server_of(request), who, run, wanted)
    note(request, row.id, run=run.id, round=row.round, variants=list(wanted.variants))
    return row


def _export(server: Server, who: Identity, run: Run, asked: ReleaseRequest) -> answers.Release:
    check_blobs(server, who, asked.examples, asked.representative)
    plan = server.plans.get(run.plan)
    checkpoint = server.runs.checkpoint(run.id, asked.round)
    held_out = asked.examples or run.settings.get("held_out", "")
    inputs, targets = plan.manifest.inputs, plan.manifest.targets
    examples = _arrays(server, held_out, {**inputs, **targets}, HELD_OUT)
    representative = _arrays(server, asked.representative, inputs, "the representative set")
    rows = representative.tensors if representative is not None else None
    wanted = releases.Wanted(asked.variants, examples, rows, asked.keras)
    return releases.describe(server.releases.export(run, checkpoint, plan, wanted))


def _arrays(server: Server, address: str, specs: Mapping[str, TensorSpec], what: str) -> Examples | None:
    return load_arrays(io.BytesIO(server.blobs.get(address)), specs, what) if address else None


@router.get("/v1/releases", dependencies=by(viewer()))
def list_releases(request: Request, who: Asking) -> list[answers.Release]:
    """Every release, newest first."""
    return [releases.describe(row) for row in server_of(request).releases.list(who.populations)]


@router.get("/v1/releases/{id}", dependencies=by(viewer()))
def show_release(request: Request, id: str) -> answers.ReleaseDetails:
    """One release, with its signed manifest."""
    row = release_in_scope(request, id)
    return answers.ReleaseDetails(**asdict(releases.describe(row)), manifest=row.manifest.decode())
