"""The typed messages of the MQTT topics; each travels as JSON inside a compact JWS.

The signed JSON is canonical: msgspec writes all fields of the struct in their order, without white space, and floats in
their shortest form. So decoding a message and encoding it again gives the same bytes. Every message names its topic (the
JWS header's `typ` repeats the last part of it), the sender's `sequence` number and its time of expiry. A command is
identified by its id, an acknowledgement or result by the id of its command, and a status by the epoch of its session.
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
from umbel.metrics import JsonSums
from umbel.signing import Keys, PublicKey
from umbel.sizes import cut_texts
from umbel.tensors import digest

PROTOCOL = 2
"""The version of the messages. The topics on which they travel have a version of their own, in umbel.topics."""
STATUS_SECONDS = 86_400.0
"""Seconds until an online status expires; the device publishes it again before that."""
INLINE_MAX = 16_384
"""The most bytes of a blob that travels inside a message; a larger one goes by HTTP."""
ID_MAX = 64
"""The most characters of an id."""
MOST_COUNT = 2**31 - 1
"""The largest whole number that fits in the server's database."""

MOST_SKEW = 1e10
"""The largest accepted skew in seconds: about three centuries."""
Megabytes = Annotated[float, Meta(ge=0, le=1e9)]
Sequence = Annotated[int, Meta(ge=0, le=2**62)]
"""A number that grows from one message of a sender to the next, also across restarts (umbel.sequence)."""
AckState = Literal["accepted", "done", "declined", "failed", "rejected", "cancelled", "expired"]
Variant = Literal["float32", "float16", "int8", "int8-full"]
"""A release's TFLite files: int8 has int8 weights and float32 activations (dynamic range); int8-full has both in int8."""
PersonalVariant = Literal["float32", "int8"]
"""The variants of a personalised model, which a device makes by overwriting weights in an inference file."""


class Blob(Struct, frozen=True, omit_defaults=True):
    """The address of some bytes: SHA-256 in hex and size in bytes; `data` holds the bytes themselves when they are few."""

    sha256: str
    size: int
    data: bytes | None = None

    @classmethod
    def of(cls, data: bytes) -> "Blob":
        """The blob of `data`, with the bytes included when they are at most INLINE_MAX."""
        return cls(digest(data), len(data), data if len(data) <= INLINE_MAX else None)

    def content(self) -> bytes | None:
        """The bytes included in the message, or None when they must be fetched; raises MessageError on another digest."""
        if self.data is not None and (len(self.data) != self.size or digest(self.data) != self.sha256):
            raise MessageError(
                f"expected inline bytes with digest {self.sha256[:12]} ({self.size} bytes), "
                f"got digest {digest(self.data)[:12]} ({len(self.data)} bytes)"
            )
        return self.data


class Train(Struct, frozen=True, tag="train", omit_defaults=True):
    """Train the plan from `weights` (safetensors) on the local examples, and answer with Trained.

    `seed` decides the order of the examples. `proximal_mu` is FedProx's mu (arXiv 1812.06127). `deadline` is Unix seconds.
    With `max_steps` > 0 training ends after that many steps. `requires` are the run's rules, which apply beside the
    device's own: a device that breaks one declines the command; one that breaks one before a later batch ends it as failed.
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
    """Stop working on an assignment; acknowledged as `done` also when the device is not working on it."""

    assignment: str


class Install(Struct, frozen=True, tag="install"):
    """Install one variant of a release: `manifest` is the release's signed manifest, `model` the TFLite file."""

    release: str
    variant: Variant
    manifest: str
    model: Blob


class Infer(Struct, frozen=True, tag="infer"):
    """Run the installed model on `inputs`: safetensors, one tensor for each input, with the batch as first axis."""

    inputs: Blob


class Export(Struct, frozen=True, tag="export", omit_defaults=True):
    """Export the device's personalised TFLite model: the plan's inference file with its weights after local training."""

    plan: Blob
    variant: PersonalVariant = "float32"


class Report(Struct, frozen=True, tag="report"):
    """Report the device's software, memory, number of examples and installed model, as Reported."""


class Standing(Struct, frozen=True, tag="standing", omit_defaults=True):
    """A notice that the device is now active, suspended or revoked; it needs no answer."""

    state: Literal["active", "suspended", "revoked"]
    reason: str = ""


class Rekey(Struct, frozen=True, tag="rekey"):
    """A notice that the server has a new signing key with the fingerprint `key`.

    The device then fetches the successions from the server, which prove that.
    """

    key: str


class Hello(Struct, frozen=True, tag="hello", omit_defaults=True):
    """A question whether the device is online; it answers within `within` seconds by a status that names this command.

    It is in no outbox and in no inbox, and may be answered more than once. With `twin` the server hears two devices with
    this identity.
    """

    within: Annotated[float, Meta(ge=0, le=60)] = 0.0
    twin: bool = False


Body = Train | Evaluate | Cancel | Install | Infer | Export | Report | Standing | Rekey | Hello


class Message(Struct, frozen=True, kw_only=True):
    """The fields that all messages share; `encode` fills in `topic`."""

    version: int = PROTOCOL
    topic: str = ""
    sequence: Sequence = 0


class CommandHead(Message, frozen=True):
    """A command's fields beside its body. They can be read even when the kind is unknown, so that it can be answered."""

    id: str
    population: str
    device: str
    issued: float
    expires: float
    body: Any
    answer_key: PublicKey | None = None


class Command(CommandHead, frozen=True):
    """One signed instruction to one device; expires at `expires` (Unix seconds) and is executed at most once.

    With an `answer_key` the device seals its answers by that key, so that only the server can read them (umbel.sealing).
    """

    body: Body


class _RawCommand(CommandHead, frozen=True):
    body: msgspec.Raw


class Ack(Message, frozen=True):
    """The state of a command; every state but `accepted` is final. `reason` is a sentence for people.

    `at` is the device's time in Unix seconds; `expires` is copied from the command.
    """

    command: str
    population: str
    device: str
    state: AckState
    at: float
    reason: str = ""
    expires: float = 0.0


class Trained(Struct, frozen=True, tag="trained", omit_defaults=True):
    """An update. `update` is a safetensors file: (weights after - weights before), after the run's pipeline (umbel.updates).

    `metrics` are sums over the `examples` trained on, divided by their number (umbel.metrics); None stands for one that is
    not finite. `seconds` is the duration of the training.
    """

    assignment: str
    update: Blob
    examples: int
    metrics: JsonSums
    seconds: float = 0.0


class Evaluated(Struct, frozen=True, tag="evaluated", omit_defaults=True):
    """Metrics as means over `examples` local examples; None stands for one that is not finite."""

    assignment: str
    examples: int
    metrics: JsonSums
    seconds: float = 0.0


class Answered(Struct, frozen=True, tag="answered"):
    """The installed model's outputs: safetensors, with the batch as first axis, rows in the order of the inputs."""

    release: str
    outputs: Blob


class Exported(Struct, frozen=True, tag="exported", omit_defaults=True):
    """The device has uploaded its personalised TFLite file `model`; it had trained in `rounds` rounds before."""

    model: Blob
    rounds: int
    variant: PersonalVariant = "float32"


class Reported(Struct, frozen=True, tag="reported", omit_defaults=True):
    """A device's report: `rss_mb` is resident memory in MB, `imports` are the heavy packages that its process has loaded.

    `installed` and `variant` name the installed release and its file; empty when there is none.
    """

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
    Hello: None,
}
"""The type of outcome that answers each type of body; None where an acknowledgement is the whole answer."""


def kind_of(body: Struct | type[Struct]) -> str:
    """The name of a command's kind: the tag of its body."""
    return str(body.__struct_config__.tag)


def blobs_of(part: Body | Outcome) -> tuple[Blob, ...]:
    """The blobs that a body or an outcome refers to, in the order of its fields."""
    return tuple(value for name in part.__struct_fields__ if isinstance(value := getattr(part, name), Blob))


class Result(Message, frozen=True):
    """The outcome of a command, which is also its final acknowledgement. `at` and `expires` are as in Ack."""

    command: str
    population: str
    device: str
    at: float
    outcome: Outcome
    expires: float = 0.0


class Status(Message, frozen=True):
    """A device's presence, published as a retained message and as the last will.

    Of two statuses the one with the higher `epoch` counts. Within one epoch an online status after an offline one counts
    only when it answers a Hello sent since: `answers` is the id of that command. Of two online statuses the one with the
    higher `sequence` counts, so a replayed older status has no effect. An offline status does not expire
    (`expires` is 0), because a will is signed when its session begins and nobody knows when the session will end.
    `reasons` are the device's own rules that its readings break now; without any, the device is eligible for work. `at` is
    the device's time, and `skew` the seconds by which it is ahead of the server's, as far as the device knows. The server
    may seal commands with the `agreement` key until a later status names another.
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
    answers: Annotated[str, Meta(max_length=ID_MAX)] = ""


class UnknownKind(MessageError):
    """A correctly signed command of a kind that this version does not know; its `head` suffices to answer it."""

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
    """The message as JSON in a compact JWS signed by `key`, with `topic` filled in and long texts cut (umbel.sizes)."""
    channel = _CHANNELS[type(message)]
    topic = topics.topic(message.population, message.device, channel)
    payload = msgspec.json.encode(_fitting(msgspec.structs.replace(message, topic=topic)))
    return signing.sign_as(channel, payload, key)


def decode(token: bytes, kind: type[M], key: Keys) -> M:
    """Verify and decode a message of type `kind` that `key`, or one of several keys, has signed for its own topic.

    Long texts are cut (umbel.sizes). Raises SignatureError or MessageError.
    """
    payload = _verify(token, kind, key)
    try:
        message = cast(M, _DECODERS[kind].decode(payload))
    except NOT_DECODED as error:
        raise MessageError(f"expected a {kind.__name__} message, got one that does not parse: {error}") from error
    _check_topic(message, _CHANNELS[kind])
    return _fitting(message)


def check_current(message: Ack | Result | Status, now: float) -> None:
    """Raise MessageError when a message expired more than umbel.enrolment.CLOCK_TOLERANCE before `now`, the server's time."""
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
    """Verify the signature and return the payload. The version is checked before the kind: other versions may have none."""
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
    """Verify and decode a command that `key`, or one of several keys, has signed for its device's topic.

    Raises SignatureError or MessageError; UnknownKind when all but the kind of command is valid.
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
    """The command id in a token whose signature is not verified yet; empty when there is none."""
    try:
        return msgspec.json.decode(signing.payload_unverified(token), type=_Id).id[:ID_MAX]
    except (SignatureError, *NOT_DECODED):
        return ""
