"""The selection of a round's devices: a pure function of the candidates, the policy and a seed."""

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from umbel_server.rounds.policy import RoundPolicy


@dataclass(frozen=True)
class Candidate:
    """A device as selection sees it: what it last said of itself, and when it was last assigned (Unix seconds; 0: never).

    `reasons` say why it does not want to train now, by its own conditions; `quarantined` why it must not; `barred` that an
    administrator has suspended or revoked it.
    """

    device: str
    online: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    examples: int = 0
    reasons: tuple[str, ...] = ()
    quarantined: str = ""
    assigned: float = 0.0
    barred: str = ""


@dataclass(frozen=True)
class Available:
    """The devices that can train now, and how many cannot, by reason."""

    candidates: tuple[Candidate, ...]
    excluded: Mapping[str, int]

    def shortage(self, needed: int) -> str:
        """A sentence that says why fewer than `needed` devices can train."""
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(self.excluded.items()))
        can = f"{needed} device{' is' if needed == 1 else 's are'} needed and {len(self.candidates)} can train" + (
            f" ({why})" if why else ""
        )
        if set(self.excluded) <= {"offline"}:
            return f"{can}; start more devices or lower the quorum"
        return f"{can}; wait until more of them can, start more devices, or lower the quorum"


def available(policy: RoundPolicy, candidates: Sequence[Candidate], busy: Collection[str], now: float) -> Available:
    """The devices that may be given an assignment at `now`, by name; `busy` ones have one already."""
    excluded: Counter[str] = Counter()
    free = []
    for candidate in sorted(candidates, key=lambda candidate: candidate.device):
        if why := _why_not(policy, candidate, busy, now):
            excluded[why] += 1
        else:
            free.append(candidate)
    return Available(tuple(free), excluded)


def _why_not(policy: RoundPolicy, candidate: Candidate, busy: Collection[str], now: float) -> str:
    if candidate.barred:
        return candidate.barred
    if not candidate.online:
        return "offline"
    if candidate.quarantined:
        return "quarantined"
    if any(candidate.labels.get(name) != value for name, value in policy.labels.items()):
        return "without the labels"
    if candidate.device in busy:
        return "busy"
    if candidate.reasons:
        return candidate.reasons[0]
    if policy.minimum_gap and now - candidate.assigned < policy.minimum_gap:
        return "assigned lately"
    return ""


def choose(policy: RoundPolicy, free: Sequence[Candidate], count: int, seed: str) -> tuple[str, ...]:
    """`count` of the `free` devices, by name; the same devices and seed give the same choice."""
    count = min(count, len(free))
    if policy.select == "least-recent":
        ranked = sorted(free, key=lambda candidate: (candidate.assigned, candidate.device))[:count]
    elif policy.select == "most-examples":
        ranked = sorted(free, key=lambda candidate: (-candidate.examples, candidate.device))[:count]
    else:
        ranked = random.Random(seed).sample(sorted(free, key=lambda candidate: candidate.device), count)
    return tuple(sorted(candidate.device for candidate in ranked))


def in_turn(free: Sequence[Candidate], count: int, number: int) -> tuple[str, ...]:
    """`count` devices for the evaluation after round `number`: round-robin, so that each has its turn."""
    names = sorted(candidate.device for candidate in free)
    if not names:
        return ()
    count = min(count, len(names))
    first = (number - 1) * count
    return tuple(sorted(names[(first + i) % len(names)] for i in range(count)))
