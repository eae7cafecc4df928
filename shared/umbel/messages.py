"""The typed payloads of MQTT topics; each travels as JSON inside a compact JWS.

The signed payload is canonical: the fields of its struct, all of them and in their order, as msgspec writes JSON without
white space and floats in their shortest form; so whoever decodes and encodes a message has the same bytes. It says for
which topic it is, which the JWS header's `typ` repeats, its sender's `sequence` and until when it is good. A message's id
is a command's own; an answer has its command's, and a status the epoch of its session.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from joserfc.jwk import ECKey
from msgspec import Meta, Struct

from umbel import signing, topics
from umbel.conditions import Rules
from umbel.enrolment import CLOCK_TOLERANCE
from umbel.errors import NOT_DECODED, MessageError, SignatureError
from umbel.signing import Keys, PublicKey
from umbel.sizes import cut_texts
from umbel.tensors import digest

PROTOCOL = 2
"""Of the messages; umbel.topics has that of the topics on which they travel."""
STATUS_SECONDS = 86_400.0
"""How long a status that says online is good; it is said again in time."""
INLINE_MAX = 16_384
"""Bytes up to which a blob's content travels inside the message instead of by HTTP."""
ID_MAX = 64
"""Characters of an id."""
MOST_COUNT = 2**31 - 1
"""The largest whole number that the server's database has room for."""

MOST_SKEW = 1e10
"""Seconds of a clock that is three centuries off."""
Megabytes = Annotated[float, Meta(ge=0, le=1e9)]
Sequence = Annotated[int, Meta(ge=0, le=2**62)]
"""A number that ascends from one message of a sender to the next, also over its restarts (umbel.sequence)."""
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
    """Whether this device takes part: told when that changes, as news that needs no answer."""

    state: Literal["active", "suspended", "revoked"]
    reason: str = ""


class Rekey(Struct, frozen=True, tag="rekey"):
    """The server has a new signing key, with the fingerprint `key`: ask it for the successions, which prove that."""

    key: str


Body = Train | Evaluate | Cancel | Install | Infer | Export | Report | Standing | Rekey


class Message(Struct, frozen=True, kw_only=True):
    """What every message says beside its own; `topic` is filled in by `encode`."""

    version: int = PROTOCOL
    topic: str = ""
    sequence: Sequence = 0


class CommandHead(Message, frozen=True):
    """What can be read of a command whatever its body, so that even an unknown kind is answered."""

    id: str
    population: str
    device: str
    issued: float
    expires: float
    body: Any
    answer_key: PublicKey | None = None


class Command(CommandHead, frozen=True):
    """One signed instruction to one device; expires at `expires` (Unix seconds) and is executed at most once.

    With an `answer_key` it is answered in messages that only the server can read (umbel.sealing).
    """

    body: Body


class _RawCommand(CommandHead, frozen=True):
    body: msgspec.Raw


class Ack(Message, frozen=True):
    """What became of a command; every state but `accepted` is final. `reason` is a sentence a person understands.

    `at` is the device's time, `expires` the command's: then nobody waits for an answer any more.
    """

    command: str
    population: str
    device: str
    state: AckState
    at: float
    reason: str = ""
    expires: float = 0.0


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
    """The device has uploaded its personalised TFLite file `model`, made after training in `rounds` rounds."""

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
    rss_mb: Megabytes
    imports: list[str]
    installed: str = ""
    variant: str = ""


Outcome = Trained | Evaluated | Answered | Exported | Reported

OUTCOMES: Mapping[type[Struct], type[Outcome] | None] = {
    Train: Trained,
    Evaluate: Evaluated,
    Cancel: None,
    Install: None,
    Infer: Answered,
    Export: Exported,
    Report: Reported,
    Standing: None,
    Rekey: None,
}
"""By the body of a command: the outcome that answers it, or None when an acknowledgement alone does."""


def kind_of(body: Struct | type[Struct]) -> str:
    """The name of a command's kind: the tag of its body."""
    return str(body.__struct_config__.tag)


def blobs_of(part: Body | Outcome) -> tuple[Blob, ...]:
    """The blobs that a body or an outcome refers to, in the order of its fields."""
    return tuple(value for name in part.__struct_fields__ if isinstance(value := getattr(part, name), Blob))


class Result(Message, frozen=True):
    """The outcome of a command that has one; it is also that command's final acknowledgement. Times as in Ack."""

    command: str
    population: str
    device: str
    at: float
    outcome: Outcome
    expires: float = 0.0


class Status(Message, frozen=True):
    """Presence, retained and also the last will. Of two, the higher `epoch` is true; within one epoch, offline is final.

    Of two of one epoch that say online the higher `sequence` is true: who repeats an older one is not believed.
    `reasons` are the device's own rules that do not hold now; with none it is eligible for work. One that says offline does
    not expire (`expires` is 0): a will is signed when its session begins, and no time says when that ends. `at` is the
    device's time, `skew` by how many seconds it is ahead of the server's, as far as the device knows. Commands may be sealed
    with its `agreement` key, until a later status names another.
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
    rss_mb: Megabytes = 0.0
    installed: str = ""
    labels: dict[str, str] = {}
    reasons: list[str] = []
    at: float = 0.0
    expires: float = 0.0
    skew: Annotated[float, Meta(ge=-MOST_SKEW, le=MOST_SKEW)] = 0.0
    agreement: PublicKey | None = None


class UnknownKind(MessageError):
    """A well signed command whose kind this version does not know; it can still be answered by its `head`."""

    def __init__(self, head: CommandHead, reason: str) -> None:
        super().__init__(reason)
        self.head = head


M = TypeVar("M", Command, Ack, Result, Status)
S = TypeVar("S", bound=Struct)

# Made here, in one thread: msgspec 0.22 crashes when several threads decode nested structs for the first time at once.
_BODY = msgspec.json.Decoder(Body)
_HEAD = msgspec.json.Decoder(_RawCommand)
_DECODERS: dict[type[Struct], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Command, Ack, Result, Status)
}
_CHANNELS: dict[type[Struct], topics.Channel] = {Command: "command", Ack: "ack", Result: "result", Status: "status"}


def encode(message: Command | Ack | Result | Status, key: ECKey) -> bytes:
    """The message, for its topic, as JSON in a compact JWS signed by `key`; its texts for people are cut to umbel.sizes."""
    channel = _CHANNELS[type(message)]
    topic = topics.topic(message.population, message.device, channel)
    payload = msgspec.json.encode(_fitting(msgspec.structs.replace(message, topic=topic)))
    return signing.sign_as(channel, payload, key)


def decode(token: bytes, kind: type[M], key: Keys) -> M:
    """The message in a JWS signed by `key`, or one of them, for the topic of that kind, population and device.

    Its texts for people are cut to umbel.sizes. Raises SignatureError or MessageError.
    """
    payload = _verify(token, kind, key)
    try:
        message = cast(M, _DECODERS[kind].decode(payload))
    except NOT_DECODED as error:
        raise MessageError(f"expected a {kind.__name__} message, got one that does not parse: {error}") from error
    _check_topic(message, _CHANNELS[kind])
    return _fitting(message)


def check_current(message: Ack | Result | Status, now: float) -> None:
    """Raise MessageError when a message had expired `now` (the server's time), but for umbel.enrolment.CLOCK_TOLERANCE."""
    if isinstance(message, Status) and not message.online:
        return
    if (late := now - message.expires) > CLOCK_TOLERANCE:
        raise MessageError(f"the {_CHANNELS[type(message)]} expired {late:.0f} s ago")


def _check_topic(message: CommandHead | Ack | Result | Status, channel: topics.Channel) -> None:
    if message.topic != (expected := topics.topic(message.population, message.device, channel)):
        raise MessageError(f"expected a message signed for {expected}, got one for {message.topic[:200]!r}")


class _Version(Struct):
    version: int


def _verify(token: bytes, kind: type[Struct], key: Keys) -> bytes:
    """The payload; of another version that is said first, as that may know no kinds."""
    payload = signing.verify(token, key)
    try:
        version = msgspec.json.decode(payload, type=_Version).version
    except NOT_DECODED as error:
        raise MessageError(f"expected a message with a version, got one that does not parse: {error}") from error
    if version != PROTOCOL:
        raise MessageError(f"the message speaks protocol {version}, this Umbel {PROTOCOL}: upgrade the older side")
    signing.check_kind(_CHANNELS[kind], token)
    return payload


_TEXTS: dict[type[Struct], tuple[str, ...]] = {
    Ack: ("reason",),
    Status: ("kind", "trainer", "agent", "runtime", "installed", "labels", "reasons"),
    Answered: ("release",),
    Reported: ("kind", "trainer", "runtime", "agent", "installed", "variant", "imports"),
}


def _fitting(message: S) -> S:
    if isinstance(message, Result):
        return msgspec.structs.replace(message, outcome=_fitting(message.outcome))
    return cut_texts(message, *_TEXTS.get(type(message), ()))


def decode_command(token: bytes, key: Keys) -> Command:
    """The command in a JWS signed by `key`, or one of them, for its device's topic.

    Raises SignatureError, MessageError, or UnknownKind when only its kind is unknown.
    """
    payload = _verify(token, Command, key)
    try:
        head = _HEAD.decode(payload)
    except NOT_DECODED as error:
        raise MessageError(f"expected a Command message, got one that does not parse: {error}") from error
    _check_topic(head, "command")
    try:
        body: Body = _BODY.decode(head.body)
    except NOT_DECODED as error:
        raise UnknownKind(head, f"this agent cannot execute the command: {error}") from error
    return Command(**{**msgspec.structs.asdict(head), "body": body})


class _Id(Struct):
    id: str


def claimed_id(token: bytes) -> str:
    """The command id that a token names, which is whose word it is only once its signature has verified; empty without one."""
    try:
        return msgspec.json.decode(signing.payload_unverified(token), type=_Id).id[:ID_MAX]
    except (SignatureError, *NOT_DECODED):
        return ""
