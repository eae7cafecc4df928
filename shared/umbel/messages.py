"""The typed payloads of MQTT topics; each travels as JSON inside a compact JWS."""

from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from joserfc.jwk import ECKey
from msgspec import Meta, Struct

from umbel import signing
from umbel.conditions import Rules
from umbel.errors import NOT_DECODED, MessageError, SignatureError
from umbel.limits import check_metrics, cut_texts
from umbel.signing import Keys
from umbel.tensors import digest
from umbel.topics import PROTOCOL

INLINE_MAX = 16_384
"""Bytes up to which a blob's content travels inside the message instead of by HTTP."""
ID_MAX = 64
"""Characters of an id."""
MOST_COUNT = 2**31 - 1
"""The largest whole number that the server's database has room for."""

AckState = Literal["accepted", "done", "declined", "failed", "rejected", "cancelled", "expired"]
Variant = Literal["float32", "float16", "int8", "int8-full"]
"""A release's TFLite files: int8 has int8 weights and float32 activations (dynamic range), int8-full both in int8."""
PersonalVariant = Literal["float32", "int8"]
"""The files that a device makes itself, by overwriting bytes."""


class Blob(Struct, frozen=True, omit_defaults=True):
    """Bytes by address: SHA-256 in hex, size in bytes, and the content itself when it is small."""

    sha256: str
    size: int
    data: bytes | None = None

    @classmethod
    def of(cls, data: bytes) -> "Blob":
        """The address of `data`, carrying it when it is at most INLINE_MAX bytes."""
        return cls(digest(data), len(data), data if len(data) <= INLINE_MAX else None)

    def content(self) -> bytes | None:
        """The bytes that travelled along, or None when they must be fetched; raises MessageError on another digest."""
        if self.data is not None and (len(self.data) != self.size or digest(self.data) != self.sha256):
            raise MessageError(
                f"expected inline bytes with digest {self.sha256[:12]} ({self.size} bytes), "
                f"got digest {digest(self.data)[:12]} ({len(self.data)} bytes)"
            )
        return self.data


class Train(Struct, frozen=True, tag="train", omit_defaults=True):
    """Train the plan from `weights` (safetensors) on the local examples, and answer with Trained.

    `seed` orders the examples; `learning_rate` is per step; `proximal_mu` is FedProx's mu (arXiv 1812.06127);
    `deadline` is Unix seconds. With `max_steps` > 0 training ends after that many steps. What the run `requires` must
    hold, beside the device's own rules, when the command is accepted (else it is `declined`) and before every batch
    (else it ends as `failed`).
    """

    assignment: str
    run: str
    round: int
    plan: Blob
    weights: Blob
    deadline: float
    learning_rate: float
    epochs: int = 1
    max_steps: int = 0
    proximal_mu: float = 0.0
    seed: int = 0
    requires: Rules = Rules()


class Evaluate(Struct, frozen=True, tag="evaluate", omit_defaults=True):
    """Evaluate `weights` on the local examples, and answer with Evaluated; `requires` as in Train."""

    assignment: str
    run: str
    round: int
    plan: Blob
    weights: Blob
    deadline: float
    requires: Rules = Rules()


class Cancel(Struct, frozen=True, tag="cancel"):
    """Stop working on an assignment; acknowledged `done` also when it is not being worked on."""

    assignment: str


class Install(Struct, frozen=True, tag="install"):
    """Install one variant of a release: `manifest` is the release's signed manifest, `model` the TFLite file."""

    release: str
    variant: Variant
    manifest: str
    model: Blob


class Infer(Struct, frozen=True, tag="infer"):
    """Run the installed model on `inputs`: safetensors, one tensor an input with a leading batch axis."""

    inputs: Blob


class Export(Struct, frozen=True, tag="export", omit_defaults=True):
    """Export the device's personalised TFLite model: the plan's inference file with its weights after local training."""

    plan: Blob
    variant: PersonalVariant = "float32"


class Report(Struct, frozen=True, tag="report"):
    """Tell what the device is and holds."""


class Standing(Struct, frozen=True, tag="standing", omit_defaults=True):
    """Whether the server takes part with this device: told when that changes, as news that needs no answer."""

    state: Literal["active", "suspended", "revoked"]
    reason: str = ""


class Rekey(Struct, frozen=True, tag="rekey"):
    """The server has a new signing key, with the fingerprint `key`: ask it for the successions, which prove that."""

    key: str


Body = Train | Evaluate | Cancel | Install | Infer | Export | Report | Standing | Rekey


class Command(Struct, frozen=True):
    """One signed instruction to one device; expires at `expires` (Unix seconds) and is executed at most once."""

    id: str
    population: str
    device: str
    issued: float
    expires: float
    body: Body
    version: int = PROTOCOL


class _CommandHead(Struct, frozen=True):
    """What can be read of a command whatever its body, so that even an unknown kind is answered."""

    id: str
    population: str
    device: str
    issued: float
    expires: float
    body: msgspec.Raw
    version: int = PROTOCOL


class Ack(Struct, frozen=True):
    """What became of a command; every state but `accepted` is final. `reason` is a sentence a person understands."""

    command: str
    population: str
    device: str
    state: AckState
    at: float
    reason: str = ""
    version: int = PROTOCOL


class Trained(Struct, frozen=True, tag="trained", omit_defaults=True):
    """An update: `update` is safetensors of (weights after - weights before), one tensor a weight, float32.

    `metrics` are sums over the `examples` trained on, divided by their number (umbel.metrics); `seconds` is the time training took.
    """

    assignment: str
    update: Blob
    examples: int
    metrics: dict[str, float | list[float]]
    seconds: float = 0.0


class Evaluated(Struct, frozen=True, tag="evaluated", omit_defaults=True):
    """Metrics as means over `examples` local examples."""

    assignment: str
    examples: int
    metrics: dict[str, float | list[float]]
    seconds: float = 0.0


class Answered(Struct, frozen=True, tag="answered"):
    """The installed model's outputs: safetensors with a leading batch axis, in the order of the inputs."""

    release: str
    outputs: Blob


class Exported(Struct, frozen=True, tag="exported", omit_defaults=True):
    """The personalised TFLite file, uploaded."""

    model: Blob
    rounds: int
    variant: PersonalVariant = "float32"


class Reported(Struct, frozen=True, tag="reported", omit_defaults=True):
    """What a device is: resident memory in MB, which heavy packages its process has loaded, what is installed."""

    kind: str
    trainer: str
    runtime: str
    agent: str
    examples: int
    rounds: int
    rss_mb: float
    imports: list[str]
    installed: str = ""
    variant: str = ""


Outcome = Trained | Evaluated | Answered | Exported | Reported


class Result(Struct, frozen=True):
    """The outcome of a command that has one; it is also that command's final acknowledgement."""

    command: str
    population: str
    device: str
    at: float
    outcome: Outcome
    version: int = PROTOCOL


class Status(Struct, frozen=True):
    """Presence, retained and also the last will. Of two, the higher `epoch` is true; within one epoch, offline is final.

    Of two of one epoch that say online the higher `sequence` is true: who repeats an older one is not believed.
    `reasons` are the device's own rules that do not hold now; with none it is eligible for work.
    """

    population: str
    device: str
    epoch: Annotated[int, Meta(ge=-(2**62), le=2**62)]
    online: bool
    kind: str = ""
    trainer: str = ""
    agent: str = ""
    runtime: str = ""
    examples: Annotated[int, Meta(ge=0, le=MOST_COUNT)] = 0
    rss_mb: float = 0.0
    installed: str = ""
    labels: dict[str, str] = {}
    reasons: list[str] = []
    sequence: Annotated[int, Meta(ge=0, le=2**62)] = 0
    version: int = PROTOCOL


class UnknownKind(MessageError):
    """A well signed command whose kind this version does not know; it can still be answered by `id`."""

    def __init__(self, id: str, reason: str) -> None:
        super().__init__(reason)
        self.id = id


M = TypeVar("M", Command, Ack, Result, Status)
S = TypeVar("S", bound=Struct)

# Made here, in one thread: msgspec 0.22 crashes when several threads decode nested structs for the first time at once.
_BODY = msgspec.json.Decoder(Body)
_DECODERS: dict[type[Struct], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Command, Ack, Result, Status)
}


def encode(message: Command | Ack | Result | Status, key: ECKey) -> bytes:
    """The message as JSON in a compact JWS signed by `key`; its texts for people are cut to umbel.limits."""
    return signing.sign(msgspec.json.encode(_fitting(message)), key)


def decode(token: bytes, kind: type[M], key: Keys) -> M:
    """The message in a JWS signed by `key`, its texts for people cut to umbel.limits; raises SignatureError or MessageError."""
    payload = signing.verify(token, key)
    _check_version(payload)
    try:
        return _fitting(cast(M, _DECODERS[kind].decode(payload)))
    except NOT_DECODED as error:
        raise MessageError(f"expected a {kind.__name__} message, got one that does not parse: {error}") from error


def _fitting(message: S) -> S:
    if isinstance(message, Ack):
        return cut_texts(message, "reason")
    if isinstance(message, Status):
        return cut_texts(message, "kind", "trainer", "agent", "runtime", "installed", "labels", "reasons")
    if isinstance(message, Result):
        outcome = message.outcome
        if isinstance(outcome, Answered):
            return msgspec.structs.replace(message, outcome=cut_texts(outcome, "release"))
        if isinstance(outcome, Reported):
            texts = ("kind", "trainer", "runtime", "agent", "installed", "variant", "imports")
            return msgspec.structs.replace(message, outcome=cut_texts(outcome, *texts))
    return message


def check_outcome(outcome: Outcome) -> None:
    """Raise MessageError when an outcome holds more than its kind can need, where cutting would change what it means."""
    blob: Blob | None = None
    match outcome:
        case Trained(assignment=assignment, metrics=metrics) | Evaluated(assignment=assignment, metrics=metrics):
            check_metrics(metrics)
            if len(assignment) > ID_MAX:
                raise MessageError(f"an assignment's id has at most {ID_MAX} characters, got {len(assignment)}")
    match outcome:
        case Trained(update=blob) | Answered(outputs=blob) | Exported(model=blob):
            if blob.data is not None and len(blob.data) > INLINE_MAX:
                raise MessageError(f"at most {INLINE_MAX} bytes travel in a message, got {len(blob.data)}; upload them")


def decode_command(token: bytes, key: Keys) -> Command:
    """The command in a JWS signed by `key`, or one of them.

    Raises SignatureError, MessageError, or UnknownKind when only its kind is unknown.
    """
    payload = signing.verify(token, key)
    _check_version(payload)
    try:
        head = msgspec.json.decode(payload, type=_CommandHead)
    except NOT_DECODED as error:
        raise MessageError(f"expected a Command message, got one that does not parse: {error}") from error
    try:
        body: Body = _BODY.decode(head.body)
    except NOT_DECODED as error:
        raise UnknownKind(head.id, f"this agent cannot execute the command: {error}") from error
    return Command(head.id, head.population, head.device, head.issued, head.expires, body, head.version)


class _Version(Struct):
    version: int


def _check_version(payload: bytes) -> None:
    try:
        version = msgspec.json.decode(payload, type=_Version).version
    except NOT_DECODED as error:
        raise MessageError(f"expected a message with a version, got one that does not parse: {error}") from error
    if version != PROTOCOL:
        raise MessageError(
            f"the message speaks protocol {version}, this Umbel speaks {PROTOCOL}: upgrade the older side"
        )


class _Id(Struct):
    id: str


def claimed_id(token: bytes) -> str:
    """The command id that a token names, which is whose word it is only once its signature has verified; empty without one."""
    try:
        return msgspec.json.decode(signing.payload_unverified(token), type=_Id).id[:ID_MAX]
    except (MessageError, SignatureError, *NOT_DECODED):
        return ""
