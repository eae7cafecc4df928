"""RoundPolicy: the target, quorum, deadline and selection of rounds, the same for real and simulated runs."""

import math
from typing import Any, Literal

import msgspec

from umbel.conditions import Rules
from umbel_server.rounds import bounds

Select = Literal["random", "least-recent", "most-examples"]
Late = Literal["drop", "fold"]
Mode = Literal["sync", "async"]

LONGEST_BACKOFF = 60.0


class RoundPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a run's rounds are made.

    A synchronous round wants `target` updates (0: `fraction` of the devices that can train, at least `quorum`), offers
    `over_selection` times as many assignments, and commits as soon as it has what it wants, or when every device has
    ended, or at its `deadline` (seconds) with at least `quorum` updates. With fewer it is abandoned and tried again
    after `backoff` seconds, twice as long each time, `attempts` times in a row; then the run pauses.

    Devices are chosen by `select` - at random by the run's seed, those longest without an assignment, or those with the
    most examples - among the devices with all of `labels` whose own conditions hold, at least `minimum_gap` seconds after
    their last assignment. What the run `requires` beside that is checked on the device, which declines when it does not hold.

    An update that comes after its round was committed is dropped, or folded into the next checkpoint with its weight
    times (1 + staleness)^-`staleness_exponent` unless it is staler than `max_staleness` checkpoints (FedBuff, arXiv
    2106.06639). In mode "async" `concurrency` devices train all the time, each from the newest checkpoint, and every
    `buffer` updates make a new one; at the deadline `quorum` of them are enough.

    After each commit `evaluate` devices, in turn, evaluate the checkpoint on their examples.

    An update's L2 norm may be `max_norm` (0: any) and `norm_multiple` times the running median of its round (0: any).
    `max_norm` keeps numbers out that overflow sums; those of softmax regression on digits are 0.01 to 30. `norm_multiple`
    is for devices with about as many steps each: there, 300 honest steps went 109 times as far as one, so it is 0 unless
    given. A device whose updates were rejected `max_rejections` times (0: never) is quarantined until an administrator
    readmits it.

    A run diverges when its held-out loss is not finite any more, or is over `max_loss_growth` times the first one, which
    counts as 1 if it is less. Such a run pauses. With 0 it goes on, and only the log warns.
    """

    target: int = 0
    fraction: float = 1.0
    over_selection: float = 1.3
    quorum: int = 1
    deadline: float = 120.0
    attempts: int = 5
    backoff: float = 1.0
    select: Select = "random"
    labels: dict[str, str] = {}
    requires: Rules = Rules()
    minimum_gap: float = 0.0
    late: Late = "drop"
    staleness_exponent: float = 0.5
    max_staleness: int = 10
    mode: Mode = "sync"
    buffer: int = 10
    concurrency: int = 100
    evaluate: int = 0
    max_norm: float = 1e9
    norm_multiple: float = 0.0
    max_rejections: int = 3
    max_loss_growth: float = 1000.0

    def __post_init__(self) -> None:
        for name, allowed in bounds.POLICY.items():
            bounds.check(name.replace("_", " "), getattr(self, name), allowed)
        if self.target and self.target < self.quorum:
            raise ValueError(f"target should be at least the quorum of {self.quorum}, got {self.target}")
        if self.mode == "async" and self.buffer < self.quorum:
            raise ValueError(f"buffer should be at least the quorum of {self.quorum}, got {self.buffer}")

    @property
    def folds_late(self) -> bool:
        """Whether an update may be folded into a later checkpoint than the next."""
        return self.late == "fold" or self.mode == "async"

    def wanted(self, available: int) -> int:
        """The number of updates that a round wants when `available` devices can train."""
        if self.mode == "async":
            return self.buffer
        return self.target or max(self.quorum, int(self.fraction * available + 0.5))

    def offers(self, available: int, wanted: int) -> int:
        """How many of the `available` devices a synchronous round asks for `wanted` updates."""
        return min(available, math.ceil(max(0, wanted) * self.over_selection - 1e-9))

    def weight(self, examples: int, staleness: int) -> float:
        """The weight of an update of `examples`: less the staler it is."""
        return examples * float((1 + staleness) ** -self.staleness_exponent)

    def rest(self, failures: int) -> float:
        """Seconds to wait after `failures` abandoned rounds in a row."""
        return min(LONGEST_BACKOFF, self.backoff * 2.0 ** min(failures - 1, 30))


def scalar_fields() -> dict[str, type]:
    """The fields that are one number or word, by name: what a flat configuration can set."""
    return {
        field.name: type(field.default) for field in msgspec.structs.fields(RoundPolicy) if _is_scalar(field.default)
    }


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float | str)
