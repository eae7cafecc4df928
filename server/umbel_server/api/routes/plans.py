"""Plans: add one."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from umbel.errors import UmbelError
from umbel.plan import Plan
from umbel_server import answers
from umbel_server.api.access import Asking, operator, server_of
from umbel_server.api.bodies import announced, counted
from umbel_server.api.documented import takes_bytes
from umbel_server.api.guarded import by, guarded, note
from umbel_server.api.scope import population_of_upload
from umbel_server.server import Server

router = guarded("plans")


@router.post("/v1/plans", dependencies=by(operator("plan.add")), openapi_extra=takes_bytes())
async def add_plan(request: Request, who: Asking) -> answers.AddedPlan:
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
    return answers.AddedPlan(plan.sha256, plan.manifest.task, plan.manifest.metric_names)


def _add_plan(server: Server, population: str, path: Path) -> Plan:
    plan = server.plans.add(path)
    if population:
        with server.database.transaction() as session:
            server.ownership.claim(session, population, server.plans.blob(plan))
    return plan
