"""The answers of the API: what the server writes, and what the client and the CLI read.

Light on purpose: only msgspec is imported. Times are Unix seconds, sizes are bytes, spans of time are seconds. A reader
ignores fields that it does not know, so an older client reads the answers of a newer server.
"""

from typing import Any, Literal

from msgspec import Struct

InvitationState = Literal["open", "used", "expired", "revoked"]
KeyState = Literal["signing", "announced", "accepted", "retired"]


class Error(Struct, frozen=True, omit_defaults=True):
    """Why a request was refused, in one sentence; `code` is there where a device acts on it."""

    error: str
    code: str = ""


class Health(Struct, frozen=True, omit_defaults=True):
    """Whether the server answers, and whether it is connected to its broker; `problem` says why not."""

    ok: bool
    broker: bool
    problem: str = ""


class StoredBlob(Struct, frozen=True):
    """A blob that was stored: its SHA-256 in hex, and its size."""

    sha256: str
    size: int


class AddedPlan(Struct, frozen=True):
    """A plan that was signed and stored: its digest as `plan`, the name of its task, and its metrics."""

    plan: str
    task: str
    metrics: tuple[str, ...]


class Command(Struct, frozen=True):
    """A command to a device. `outcome` is what the device answered: an object of umbel.messages.Outcome; None before."""

    id: str
    population: str
    device: str
    kind: str
    state: str
    reason: str
    issued: float
    expires: float
    updated: float
    outcome: dict[str, Any] | None


class Device(Struct, frozen=True):
    """A device.

    `labels` are those that count; `set_labels` are those among them that an administrator set. `reasons` say why the
    device takes no work by its own rules; it is eligible without. `skew` is its clock minus the server's. `quarantined`
    says why it gets no assignments, "" when it does.
    """

    population: str
    id: str
    kind: str
    online: bool
    trainer: str
    runtime: str
    agent: str
    examples: int
    rss_mb: float
    installed: str
    name: str
    labels: dict[str, str]
    set_labels: dict[str, str]
    state: str
    state_reason: str
    state_since: float
    reasons: list[str]
    last_seen: float
    skew: float
    enrolled: float
    assigned: float
    rejections: int
    quarantined: str
    epoch: int


class DeviceDetails(Device, frozen=True):
    """A device with its latest commands; `refused` counts what was refused to it since the server started, by kind."""

    refused: dict[str, int]
    commands: list[Command]


class DeletedDevice(Struct, frozen=True):
    """A device that was removed from the register."""

    population: str
    id: str
    state: str


class Invitation(Struct, frozen=True):
    """An invitation. `used` is when a device enrolled with it, 0 before; `device` is which one."""

    id: str
    population: str
    labels: dict[str, str]
    kind: str
    state: InvitationState
    created: float
    expires: float
    used: float
    device: str


class NewInvitation(Invitation, frozen=True):
    """An invitation with its token, which no other answer holds."""

    token: str


class Run(Struct, frozen=True):
    """A run without its rounds: `round` is the newest committed one of `rounds`. `settings` are those of RunSettings."""

    id: str
    population: str
    task: str
    plan: str
    state: str
    reason: str
    round: int
    rounds: int
    strategy: str
    settings: dict[str, Any]
    created: float
    updated: float


class Checkpoint(Struct, frozen=True):
    """A checkpoint: the digest of its `weights`, held-out `metrics`, and `fleet_metrics` of the devices while training."""

    round: int
    weights: str
    metrics: dict[str, float]
    fleet_metrics: dict[str, float]
    contributors: int
    started: float
    committed: float


class EvaluatedCheckpoint(Checkpoint, frozen=True):
    """A checkpoint with the metrics that devices measured on their own examples, and how many devices did."""

    evaluated: dict[str, float]
    evaluators: int


class Attempt(Struct, frozen=True):
    """An attempt at a round. `wanted` is how many updates it asks for; `seconds` is what the server spent on it, by what it did."""

    round: int
    attempt: int
    state: str
    reason: str
    opened: float
    closes: float
    closed: float
    wanted: int
    quorum: int
    seconds: dict[str, float]


class Assignment(Struct, frozen=True):
    """A device's work in one round. An update that was folded is in checkpoint `folded_into` with `weight`."""

    id: str
    device: str
    round: int
    kind: str
    state: str
    reason: str
    examples: int
    seconds: float
    metrics: dict[str, float | None | list[float | None]]
    since: float
    offered: float
    closes: float
    attempt: int
    weight: float
    folded_into: int | None
    bytes_down: int
    bytes_up: int


class RunDetails(Run, frozen=True):
    """A run with all its checkpoints, and with the attempts and assignments of one round."""

    bytes_down: int
    bytes_up: int
    checkpoints: list[EvaluatedCheckpoint]
    attempts: list[Attempt]
    assignments: list[Assignment]


class StateCounts(Struct, frozen=True):
    """Assignments by state: those of the round under way, and those of earlier rounds whose updates may still be folded."""

    round: dict[str, int] = {}
    earlier: dict[str, int] = {}


class WaitedFor(Struct, frozen=True):
    """An assignment whose device has not answered for good; `since` is when its state last changed."""

    device: str
    round: int
    state: str
    since: float
    closes: float
    online: bool


class Abandoned(Struct, frozen=True):
    """How many attempts were abandoned, and the latest of them, newest first."""

    count: int
    latest: list[Attempt]


class Available(Struct, frozen=True):
    """How many devices could be given an assignment, and how many could not, by reason."""

    available: int
    excluded: dict[str, int]


class LiveRun(Run, frozen=True):
    """A run and what goes on in it at this moment, `now` by the server's clock.

    `attempt` is the newest attempt at a round; `next` is when another begins after an abandoned one, else 0. `waiting` are
    the assignments that the round waits for, those silent for longest first. `devices` is None while an attempt is open.
    """

    now: float
    bytes_down: int
    bytes_up: int
    checkpoints: list[Checkpoint]
    attempt: Attempt | None
    next: float
    states: StateCounts
    waiting: list[WaitedFor]
    abandoned: Abandoned
    devices: Available | None


class ReleaseFile(Struct, frozen=True, omit_defaults=True):
    """A TFLite file of a release, as umbel.release.ReleaseFile has it; a metric that is no number is None."""

    sha256: str
    size: int
    metrics: dict[str, float | None]
    difference: float | None = None
    latency_ms: float | None = None


class Parity(Struct, frozen=True, omit_defaults=True):
    """What the files of a release were measured by, as umbel.release.Parity has it."""

    rows: str
    machine: str
    plan: dict[str, float | None] = {}
    keras: dict[str, float | None] = {}


class Release(Struct, frozen=True):
    """A release: its files by variant. `parity` is None for one that an old server made."""

    id: str
    run: str
    round: int
    task: str
    created: float
    files: dict[str, ReleaseFile]
    parity: Parity | None


class ReleaseDetails(Release, frozen=True):
    """A release with its manifest, which is a JWS by the server's key."""

    manifest: str


class Quota(Struct, frozen=True):
    """What a population uses and may use; a limit of None is none. `refused` counts requests beyond a limit, by kind."""

    population: str
    devices: int
    devices_limit: int | None
    storage: int
    storage_limit: int | None
    bytes_down_today: int
    bytes_up_today: int
    bytes_per_day_limit: int | None
    refused: dict[str, int]


class Admin(Struct, frozen=True):
    """An administrator: for some `populations`, or for all. `expires` and `revoked` are 0 for never and not yet."""

    id: str
    name: str
    role: str
    populations: list[str]
    created: float
    expires: float
    revoked: float


class NewAdmin(Admin, frozen=True):
    """An administrator with its token, which no other answer holds."""

    token: str


class AuditEntry(Struct, frozen=True):
    """An entry of the audit log: who did what, to what, and what came of it. `detail` is by action."""

    sequence: int
    at: float
    who: str
    action: str
    subject: str
    population: str
    detail: dict[str, Any]
    outcome: str
    previous: str
    hash: str


class AuditVerdict(Struct, frozen=True):
    """How many entries of the audit log are whole, the hash of the last of them, and what is wrong after it, or ""."""

    entries: int
    hash: str
    fault: str


class Key(Struct, frozen=True):
    """A signing key of the server, by its fingerprint.

    `made` is 0 for the first key. `until` and `signs_at` are None where they do not apply. `confirmed` of `devices` that
    had to be told of the key have said that they trust it.
    """

    key: str
    state: KeyState
    made: float
    until: float | None
    signs_at: float | None
    devices: int
    confirmed: int
