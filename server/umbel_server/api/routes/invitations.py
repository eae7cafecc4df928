"""Invitations: make, list and revoke them."""

from typing import Annotated

import msgspec
from fastapi import Request
from msgspec.structs import asdict
from starlette.concurrency import run_in_threadpool

from umbel.enrolment import make_token
from umbel_server import answers
from umbel_server.api.access import Asking, owner, server_of, viewer
from umbel_server.api.bodies import body_of
from umbel_server.api.documented import takes
from umbel_server.api.guarded import by, guarded, note
from umbel_server.api.scope import check_population
from umbel_server.devices.invitations import UnknownInvitation

router = guarded("invitations")


class InvitationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Invitations to make: `count` into a population, each open for `ttl` seconds, with labels and perhaps a kind."""

    population: str
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    ttl: float = 86_400.0
    labels: dict[str, str] = {}
    kind: str = ""


@router.post("/v1/invitations", dependencies=by(owner("invitation.add")), openapi_extra=takes(InvitationRequest))
async def invite(request: Request, who: Asking) -> list[answers.NewInvitation]:
    """Make invitations; only this answer holds their tokens."""
    server = server_of(request)
    asked = msgspec.json.decode(await body_of(request), type=InvitationRequest)
    note(request, population=asked.population, count=asked.count, ttl=asked.ttl)
    check_population(who, asked.population)
    made = await run_in_threadpool(
        server.invitations.invite, asked.population, asked.count, asked.ttl, asked.labels, asked.kind
    )
    return [
        answers.NewInvitation(
            **asdict(server.invitations.describe(one.invitation)), token=make_token(one.secret, server.state.trust)
        )
        for one in made
    ]


@router.get("/v1/invitations", dependencies=by(viewer()))
def list_invitations(request: Request, who: Asking) -> list[answers.Invitation]:
    """List the invitations, newest first, without their tokens."""
    invitations = server_of(request).invitations
    return [invitations.describe(row) for row in invitations.list() if who.sees(row.population)]


@router.post("/v1/invitations/{id}/revoke", dependencies=by(owner("invitation.revoke")))
def revoke_invitation(request: Request, who: Asking, id: str) -> answers.Invitation:
    """Revoke an unused invitation."""
    invitations = server_of(request).invitations
    invitation = invitations.get(id)
    if not who.sees(invitation.population):
        raise UnknownInvitation(id)
    note(request, id, invitation.population)
    return invitations.describe(invitations.revoke(id))
