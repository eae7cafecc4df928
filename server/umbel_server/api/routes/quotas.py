"""Quotas of populations, and their usage."""

import msgspec
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from umbel_server import answers
from umbel_server.api.access import Asking, Refused, owner, server_of, viewer
from umbel_server.api.bodies import body_of
from umbel_server.api.documented import takes
from umbel_server.api.guarded import by, guarded, note
from umbel_server.api.scope import check_population
from umbel_server.limits.quotas import QuotaChange

router = guarded("quotas")


@router.get("/v1/quotas", dependencies=by(viewer()))
def list_quotas(request: Request, who: Asking) -> list[answers.Quota]:
    """List the usage and the quotas of every population, by name."""
    quotas = server_of(request).quotas
    return [quotas.describe(name) for name in quotas.populations() if who.sees(name)]


@router.get("/v1/quotas/{population}", dependencies=by(viewer()))
def show_quota(request: Request, who: Asking, population: str) -> answers.Quota:
    """Show the usage and the quotas of one population."""
    check_population(who, population)
    return server_of(request).quotas.describe(population)


@router.post("/v1/quotas/{population}", dependencies=by(owner("quota.set")), openapi_extra=takes(QuotaChange))
async def set_quota(request: Request, who: Asking, population: str) -> answers.Quota:
    """Change quotas of a population from the next request on; for owners of all populations."""
    asked = msgspec.json.decode(await body_of(request), type=QuotaChange)
    note(request, population, population, **msgspec.to_builtins(asked))
    check_population(who, population)
    if who.populations:
        raise Refused(f"only an owner of all populations may set a quota; {who.name} is an owner of {who.scope}", 403)
    quotas = server_of(request).quotas
    await run_in_threadpool(quotas.set, population, asked)
    return await run_in_threadpool(quotas.describe, population)
