"""The tokens with which devices sign their HTTP requests."""

import time

from joserfc.jwk import ECKey

from umbel.enrolment import Access, bearer, make_nonce


def signed(
    key: ECKey,
    population: str,
    device: str,
    method: str,
    path: str,
    command: str = "",
    at: float | None = None,
    body: str = "",
    offset: int = 0,
    nonce: str | None = None,
) -> dict[str, str]:
    """The headers of one request of a device, fresh and good once unless it is said otherwise."""
    access = Access(
        population,
        device,
        method,
        path,
        time.time() if at is None else at,
        command,
        body,
        offset,
        make_nonce() if nonce is None else nonce,
    )
    return {"Authorization": bearer(access, key)}
