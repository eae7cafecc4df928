"""The signed manifest of a release: which TFLite files, made from which checkpoint, how good."""

import msgspec
from joserfc.jwk import ECKey
from msgspec import Struct

from umbel import signing
from umbel.errors import NOT_DECODED, PlanError, SignatureError
from umbel.signing import Keys

SCHEMA = 1
KIND = "release"
"""As what a manifest is signed. It does not expire: what is installed must still verify years later."""


class ReleaseFile(Struct, frozen=True, omit_defaults=True):
    """One TFLite file: SHA-256 in hex, bytes, and its held-out metrics (empty when nothing was held out).

    `difference` is the largest absolute difference of its outputs from the float32 file's, over the rows that the
    manifest's Parity names; `latency_ms` the median time of one row. None in releases of before there was a Parity.
    """

    sha256: str
    size: int
    metrics: dict[str, float]
    difference: float | None = None
    latency_ms: float | None = None


class Parity(Struct, frozen=True, omit_defaults=True):
    """What the files of a release were measured by.

    `rows` says on which inputs and how many, `machine` on which machine and runtime, one thread. `plan` are the held-out
    metrics of the plan's own evaluation, which the compiler has checked against Keras's. `keras` are those that
    Keras's evaluation gave the administrator who exported. Both are empty when nothing was held out.
    """

    rows: str
    machine: str
    plan: dict[str, float] = {}
    keras: dict[str, float] = {}


class ReleaseManifest(Struct, frozen=True, omit_defaults=True):
    """What a release is; `created` is Unix seconds, `lineage` names the checkpoint and the software that made it.

    It is for the devices of the `population` that trained it.
    """

    schema: int
    id: str
    run: str
    round: int
    plan: str
    task: str
    files: dict[str, ReleaseFile]
    created: float
    lineage: dict[str, str]
    parity: Parity | None = None
    population: str = ""


# Made here, in one thread: msgspec 0.22 crashes when several threads decode nested structs for the first time at once.
_MANIFEST = msgspec.json.Decoder(ReleaseManifest)


class _Schema(Struct):
    schema: int


def sign(manifest: ReleaseManifest, key: ECKey) -> bytes:
    """The manifest as a compact JWS."""
    return signing.sign_as(KIND, msgspec.json.encode(manifest), key)


def verify(token: bytes, key: Keys) -> ReleaseManifest:
    """The manifest in a JWS signed by `key`, or one of them; raises PlanError when it is not signed so, or of a newer schema."""
    try:
        payload = signing.verify_as(KIND, token, key)
        schema = msgspec.json.decode(payload, type=_Schema).schema
        if schema > SCHEMA:
            raise PlanError(f"the release has schema {schema}, this Umbel reads up to {SCHEMA}: upgrade Umbel here")
        return _MANIFEST.decode(payload)
    except (SignatureError, *NOT_DECODED) as error:
        raise PlanError(f"the release's manifest does not verify: {error}") from error


def contents(token: bytes) -> ReleaseManifest:
    """The manifest in a JWS, its signature not checked: for whoever signed it."""
    return _MANIFEST.decode(signing.payload_unverified(token))
