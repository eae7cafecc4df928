"""The signed manifest of a release: which TFLite files, made from which checkpoint, how good."""

import msgspec
from joserfc.jwk import ECKey
from msgspec import Struct

from umbel import signing
from umbel.errors import PlanError, SignatureError

SCHEMA = 1


class ReleaseFile(Struct, frozen=True):
    """One TFLite file: SHA-256 in hex, bytes, and its held-out metrics (empty when nothing was held out)."""

    sha256: str
    size: int
    metrics: dict[str, float]


class ReleaseManifest(Struct, frozen=True):
    """What a release is; `created` is Unix seconds, `lineage` names the checkpoint and the software that made it."""

    schema: int
    id: str
    run: str
    round: int
    plan: str
    task: str
    files: dict[str, ReleaseFile]
    created: float
    lineage: dict[str, str]


class _Schema(Struct):
    schema: int


def sign(manifest: ReleaseManifest, key: ECKey) -> bytes:
    """The manifest as a compact JWS."""
    return signing.sign(msgspec.json.encode(manifest), key)


def verify(token: bytes, key: ECKey) -> ReleaseManifest:
    """The manifest in a JWS signed by `key`; raises PlanError when it is not signed so, or of a newer schema."""
    try:
        payload = signing.verify(token, key)
        schema = msgspec.json.decode(payload, type=_Schema).schema
        if schema > SCHEMA:
            raise PlanError(f"the release has schema {schema}, this Umbel reads up to {SCHEMA}: upgrade Umbel here")
        return msgspec.json.decode(payload, type=ReleaseManifest)
    except (SignatureError, msgspec.DecodeError, RecursionError) as error:
        raise PlanError(f"the release's manifest does not verify: {error}") from error
