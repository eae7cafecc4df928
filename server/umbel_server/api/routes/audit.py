"""The audit log: list its entries, verify it."""

from typing import Annotated

from fastapi import Query, Request

from umbel_server import answers
from umbel_server.api.access import Asking, server_of, viewer
from umbel_server.api.guarded import by, guarded

router = guarded("audit")

MOST_ENTRIES = 10_000


@router.get("/v1/audit", dependencies=by(viewer()))
def list_audit(
    request: Request,
    asking: Asking,
    within: Annotated[float | None, Query(gt=0, le=1e9)] = None,
    who: Annotated[str, Query(max_length=160)] = "",
    limit: Annotated[int, Query(ge=1, le=MOST_ENTRIES)] = 100,
) -> list[answers.AuditEntry]:
    """List entries of the audit log, newest first: of the last `within` seconds, by actor `who`.

    An administrator of some populations sees the entries of these.
    """
    server = server_of(request)
    since = 0.0 if within is None else server.clock() - within
    return server.audit.list(since, who, limit, asking.populations)


@router.get("/v1/audit/verify", dependencies=by(viewer()))
def verify_audit(request: Request) -> answers.AuditVerdict:
    """Verify the audit log: the number of intact `entries`, the `hash` of the last, and the `fault` after it or ""."""
    head, fault = server_of(request).audit.verify()
    return answers.AuditVerdict(head.count, head.hash, fault.sentence if fault is not None else "")
