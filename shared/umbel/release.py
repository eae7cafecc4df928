"""The signed manifest of a release: its TFLite files, their metrics, and the checkpoint from which they were made."""

import msgspec
from joserfc.jwk import ECKey
from msgspec import Struct

from umbel import signing
from umbel.errors import NOT_DECODED, PlanError, SignatureError
from umbel.signing import Keys

SCHEMA = 1
KIND = "release"
"""The purpose in the JWS header of a signed manifest (`signing.sign_as`). The signature does not expire, because an
installed model must still verify years later."""


class ReleaseFile(Struct, frozen=True, omit_defaults=True):
    """One TFLite file: SHA-256 in hex, size in bytes, and its metrics on held-out examples (empty when there are none).

    `difference` is the largest absolute difference between its outputs and the float32 file's, over the rows that the
    manifest's Parity describes. `latency_ms` is the median time of one row. Both are None in a release older than Parity.
    """

    sha256: str
    size: int
    metrics: dict[str, float]
    difference: float | None = None
    latency_ms: float | None = None


class Parity(Struct, frozen=True, omit_defaults=True):
    """The measurement of a release's files.

    `rows` describes the inputs and their number, `machine` the machine and runtime (one thread). `plan` are the metrics of
    the plan's own evaluation on held-out examples, which the compiler has checked against Keras. `keras` are the metrics
    of Keras's evaluation on them, made by the administrator who exported the release. Both are empty when there were no
    held-out examples.
    """

    rows: str
    machine: str
    plan: dict[str, float] = {}
    keras: dict[str, float] = {}


class ReleaseManifest(Struct, frozen=True, omit_defaults=True):
    """The description of a release for the devices of `population`, which trained it.

    `created` is Unix seconds. `lineage` names the checkpoint and the versions of the software that made the release.
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
    """The manifest in a JWS that `key`, or one of several keys, signed; raises PlanError when it is not valid or too new."""
    try:
        payload = signing.verify_as(KIND, token, key)
        schema = msgspec.json.decode(payload, type=_Schema).schema
        if schema > SCHEMA:
            raise PlanError(f"the release has schema {schema}, this Umbel reads up to {SCHEMA}: upgrade Umbel here")
        return _MANIFEST.decode(payload)
    except (SignatureError, *NOT_DECODED) as error:
        raise PlanError(f"the release's manifest does not verify: {error}") from error


def contents(token: bytes) -> ReleaseManifest:
    """The manifest in a JWS without a check of the signature: only for a JWS that the caller has signed itself."""
    return _MANIFEST.decode(signing.payload_unverified(token))
