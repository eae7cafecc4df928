"""Command kinds: one row for each kind of command.

A new kind is a body and its outcome in `umbel.messages`, a row here, and a handler of the agent (`umbel_edge.commands.handlers.table`).
The API, the command line, the outbox, the exchange and upload permission read the row. What a row makes its body from comes
in as an argument, so that this file imports no other part of the server.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Protocol, TypeVar, cast, get_args

from msgspec import Struct
from msgspec.structs import FieldInfo, fields

from umbel.errors import UmbelError
from umbel.messages import (
    OUTCOMES,
    Blob,
    Body,
    Cancel,
    Evaluate,
    Export,
    Hello,
    Infer,
    Install,
    Outcome,
    PersonalVariant,
    Rekey,
    Report,
    Standing,
    Train,
    Variant,
    kind_of,
)
from umbel.plan import PLACED

if TYPE_CHECKING:
    from umbel_server.commands.upload_sizes import UploadSizes
    from umbel_server.models.plans import Plans
    from umbel_server.models.releases import Releases
    from umbel_server.storage.blobs import Blobs

B = TypeVar("B", bound=Body)


@dataclass(frozen=True)
class Option:
    """How `umbel command send` takes a field of a request.

    A text is sent as it is. For `arrays` the option is an .npz file and the field the digest of its upload; for the `plan`
    of a run the option is the run and the field the plan's digest. `name` is the option's, by default the field's.
    """

    help: str
    takes: Literal["text", "arrays", "plan"] = "text"
    required: bool = False
    name: str = ""
    audited: bool = False
    """Whether the audit log notes the field."""


@dataclass(frozen=True)
class RequestField:
    """A field of an administrator's request, and its option on the command line."""

    name: str
    type: Any
    default: Any
    option: Option

    @classmethod
    def of(cls, field: FieldInfo) -> "RequestField":
        """The field of a Request's struct, which names its Option as an annotation."""
        (option,) = (note for note in get_args(field.type) if isinstance(note, Option))
        return cls(field.name, field.type, field.default, option)

    @property
    def option_name(self) -> str:
        """The option's name, without dashes."""
        return self.option.name or self.name


@dataclass(frozen=True)
class Sources:
    """What bodies are made from, as far as the administrator's `populations` (empty: all) may see it."""

    releases: "Releases"
    plans: "Plans"
    blobs: "Blobs"
    populations: Sequence[str]
    check_blob: Callable[[str], None]
    """Raises MissingBlob when the administrator may not see a blob."""


class Request(Protocol):
    """The fields that an administrator's request has for one kind of command: a struct."""

    def __init__(self, **fields: Any) -> None:
        """From all of them, by name."""

    def body(self, sources: Sources) -> Body:
        """The body of the commands; raises UmbelError when it cannot be made."""


class InstallRequest(Struct, frozen=True):
    """Install one variant of a release."""

    release: Annotated[str, Option("the release's id", required=True, audited=True)] = ""
    variant: Annotated[Variant, Option("float32, float16, int8 or int8-full", audited=True)] = "float32"

    def body(self, sources: Sources) -> Install:
        """As Request."""
        return sources.releases.install(self.release, self.variant, sources.populations)


class InferRequest(Struct, frozen=True):
    """Run the installed model on inputs: `inputs` is the digest of an uploaded safetensors file."""

    inputs: Annotated[str, Option("an .npz with one array an input", "arrays", required=True)] = ""

    def body(self, sources: Sources) -> Infer:
        """As Request."""
        sources.check_blob(self.inputs)
        return Infer(Blob.of(sources.blobs.get(self.inputs)))


class ExportRequest(Struct, frozen=True):
    """Export the device's personalised model of a plan, given by its digest."""

    plan: Annotated[str, Option("the run whose plan to export", "plan", required=True, name="run")] = ""
    variant: Annotated[Variant, Option("float32 or int8")] = "float32"

    def body(self, sources: Sources) -> Export:
        """As Request."""
        sources.check_blob(self.plan)
        plan = sources.plans.get(self.plan)
        if self.variant not in PLACED:
            raise UmbelError(
                f"a device makes float32 and int8 files itself; {self.variant} is made on the server, in a release"
            )
        return Export(sources.plans.blob(plan), cast(PersonalVariant, self.variant))


class ReportRequest(Struct, frozen=True):
    """Report what the device is and holds."""

    def body(self, sources: Sources) -> Report:
        """As Request."""
        return Report()


class CancelRequest(Struct, frozen=True):
    """Stop working on an assignment."""

    assignment: Annotated[str, Option("the assignment's id", required=True)] = ""

    def body(self, sources: Sources) -> Cancel:
        """As Request."""
        return Cancel(self.assignment)


@dataclass(frozen=True)
class Upload(Generic[B]):
    """The blob with which devices answer: its largest size in bytes, and the file that an administrator makes of it.

    A blob that becomes no file is not published: it stays with its command until it is folded.
    """

    largest: Callable[[B, "UploadSizes"], int]
    file: Literal["", ".tflite", ".npz"] = ""

    @property
    def is_published(self) -> bool:
        """Whether the population owns the blob from the answer on."""
        return bool(self.file)


@dataclass(frozen=True)
class CommandKind(Generic[B]):
    """One kind of command.

    Administrators send it by the fields of `request`; without one only the server sends it. An outcome with a blob needs an
    `upload`. With `has_assignment` an assignment moves with each of its commands, in the same transaction.
    """

    body: type[B]
    request: type[Request] | None = None
    upload: Upload[B] | None = None
    has_assignment: bool = False

    @property
    def name(self) -> str:
        """The kind's name: the body's tag."""
        return kind_of(self.body)

    @property
    def request_fields(self) -> tuple["RequestField", ...]:
        """The fields of an administrator's request that are for this kind."""
        if self.request is None:
            return ()
        return tuple(RequestField.of(field) for field in fields(cast(type[Struct], self.request)))

    @property
    def outcome(self) -> type[Outcome] | None:
        """The outcome that answers it, or None when an acknowledgement alone does."""
        return OUTCOMES[self.body]


def _largest_update(body: Train, sizes: "UploadSizes") -> int:
    return sizes.update(body.plan.sha256)


def _largest_output(_: Infer, sizes: "UploadSizes") -> int:
    return sizes.most


def _largest_model(body: Export, sizes: "UploadSizes") -> int:
    return sizes.file(body.plan.sha256, PLACED[body.variant])


KINDS: tuple[CommandKind[Any], ...] = (
    CommandKind(Train, upload=Upload(_largest_update), has_assignment=True),
    CommandKind(Evaluate, has_assignment=True),
    CommandKind(Install, InstallRequest),
    CommandKind(Infer, InferRequest, Upload(_largest_output, ".npz")),
    CommandKind(Export, ExportRequest, Upload(_largest_model, ".tflite")),
    CommandKind(Report, ReportRequest),
    CommandKind(Cancel, CancelRequest),
    CommandKind(Standing),
    CommandKind(Rekey),
    CommandKind(Hello),
)

SENDABLE = {kind.name: kind for kind in KINDS if kind.request is not None}
"""The kinds that administrators send, by name."""

ASSIGNED = frozenset(kind.name for kind in KINDS if kind.has_assignment)
"""The names of the kinds whose commands have an assignment."""

_BY_NAME = {kind.name: kind for kind in KINDS}


def named(name: str) -> CommandKind[Any]:
    """The kind of a name; raises UmbelError on one that this server does not know."""
    if name not in _BY_NAME:
        raise UmbelError(f"commands of kind {name[:64]!r} are unknown to this server; upgrade it")
    return _BY_NAME[name]
