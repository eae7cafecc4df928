"""The round engine: a pure state machine, (state, event) -> (state, effects). No clock, no network, no database.

The same engine drives rounds on a fleet, in a simulation's virtual time, and in deterministic tests. Its durable half is
a `Record`: what the database knows of a run. `recover` makes a state of it after any crash.
"""

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Literal

from umbel_server.rounds import events
from umbel_server.rounds.assignments import WITH_DEVICE, FinalState
from umbel_server.rounds.events import Effect, Event, Offer
from umbel_server.rounds.open_assignments import OpenAssignment, OpenAssignments
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.rounds.selection import Candidate, available, choose

Phase = Literal["selecting", "collecting", "committing", "resting", "ended"]


@dataclass(frozen=True)
class OpenRound:
    """An attempt at a round that was neither committed nor abandoned; `resumed`: the run was paused since it was opened."""

    number: int
    attempt: int
    opened: float
    closes: float
    wanted: int
    resumed: bool = False


@dataclass(frozen=True)
class Record:
    """The durable state of a run: its newest checkpoint `version`, and the work since.

    `failures` counts the attempts abandoned in a row since the run was last resumed. `attempts` counts those of the next
    round, and `made` all assignments of the run. `done` is the reason that the run has reached its end, or "".
    """

    run: str
    seed: int
    policy: RoundPolicy
    rounds: int
    version: int
    open: OpenRound | None = None
    work: tuple[OpenAssignment, ...] = ()
    failures: int = 0
    attempts: int = 0
    made: int = 0
    done: str = ""


@dataclass(frozen=True)
class State:
    """Where a run is. `wanted` updates are wanted until `closes`; `opened` is when this attempt, or its wait, began.

    `trouble` is why the last assignment that came to nothing did, for people. An attempt that a pause has interrupted is
    opened `again` when too few of its updates came before: it keeps them and asks other devices for what is missing.
    """

    run: str
    seed: int
    policy: RoundPolicy
    rounds: int
    version: int
    phase: Phase
    attempt: int
    failures: int
    made: int
    opened: float
    closes: float
    wanted: int = 0
    work: OpenAssignments = field(default_factory=OpenAssignments)
    trouble: str = ""
    again: bool = False

    @property
    def number(self) -> int:
        """The round under way."""
        return self.version + 1

    def count(self, *states: str) -> int:
        """The number of assignments in one of `states`."""
        return self.work.count(*states)

    @property
    def wake(self) -> float:
        """The time at which the engine needs a Tick if no other event comes; infinity when it needs none."""
        if self.phase in ("committing", "ended"):
            return math.inf
        return min(self.closes, self.work.soonest)

    @property
    def wants_devices(self) -> bool:
        """Whether a device that comes online now would get an assignment."""
        if self.phase == "selecting":
            return True
        free = self.policy.concurrency - self.count(*WITH_DEVICE)
        return self.phase == "collecting" and self.policy.mode == "async" and free > 0


def recover(record: Record, now: float) -> tuple[State, tuple[Effect, ...]]:
    """The state of a run that begins, or goes on after a crash at any instant, and what to do first.

    Updates that had arrived are folded again; assignments that devices are working on go on.
    """
    opened = record.open if record.open is not None and record.open.number > record.version else None
    state = State(
        run=record.run,
        seed=record.seed,
        policy=record.policy,
        rounds=record.rounds,
        version=record.version,
        phase="collecting" if opened else "selecting",
        attempt=opened.attempt if opened else record.attempts,
        failures=record.failures,
        made=record.made,
        opened=opened.opened if opened else now,
        closes=opened.closes if opened else now + record.policy.deadline,
        wanted=opened.wanted if opened else 0,
        work=OpenAssignments(record.work),
        again=opened is not None and opened.resumed,
    )
    turn = _Turn(state, now)
    done = record.done or ("" if record.version < record.rounds else "its last round is committed")
    if done:
        turn.end("finished", done)
    elif opened is None and record.failures >= record.policy.attempts:
        turn.pause("")  # the crash came before the pause was noted
    else:
        turn.drop_stale()
        turn.fold_arrived()
        if opened is None:
            turn.select()
        else:
            if record.policy.mode == "async":
                turn.effects.append(events.Look())
            turn.expire()
            turn.decide()
    return turn.state, tuple(turn.effects)


def step(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
    """Apply an event; returns the new state and the effects. An event of an assignment with a final state changes nothing."""
    turn = _Turn(state, event.now)
    if state.phase != "ended":
        turn.take(event)
    return turn.state, tuple(turn.effects)


class _Turn:
    """One step under way."""

    def __init__(self, state: State, now: float) -> None:
        self.state, self.now = state, now
        self.effects: list[Effect] = []

    def take(self, event: Event) -> None:
        match event:
            case events.Order(what="pause"):
                self.finish_all(WITH_DEVICE, "cancelled", "the run was paused")
                self.end("paused", "paused by an administrator")
                return
            case events.Order():
                self.finish_all(
                    ("offered", "accepted", "arrived", "folding", "folded"), "cancelled", "the run was stopped"
                )
                self.end("stopped", "stopped by an administrator")
                return
            case events.Candidates(candidates=candidates):
                self.offer(candidates)
            case events.Accepted(id=id) if self._is(id, "offered"):
                self._put(replace(self.state.work[id], state="accepted"))
            case events.Uploaded(id=id, examples=examples) if self._is(id, *WITH_DEVICE):
                self._put(replace(self.state.work[id], state="arrived", examples=examples))
                self.fold_arrived()
            case events.Ended(id=id, reason=reason) if self._is(id, *WITH_DEVICE):
                self._drop(id)
                self.state = replace(self.state, trouble=reason)
            case events.Folded(id=id) if self._is(id, "folding"):
                self._put(replace(self.state.work[id], state="folded"))
            case events.Refused(id=id, reason=reason) if self._is(id, "folding"):
                self.finish(id, "rejected", reason)
                self.state = replace(self.state, trouble=reason)
                self.fold_arrived()  # there is room for another
            case events.Committed(done=done) if self.state.phase == "committing":
                self.committed(done)
            case events.Unable(reason=reason) if self.state.phase == "committing":
                self.abandon(reason)
            case _:
                pass  # time passed, or the assignment has its final state
        if isinstance(event, events.Uploaded | events.Ended) and self.state.wants_devices:
            self.effects.append(events.Look())
        self.expire()
        self.decide()

    def offer(self, candidates: tuple[Candidate, ...]) -> None:
        state, policy = self.state, self.state.policy
        if state.phase not in ("selecting", "collecting"):
            return
        busy = {work.device for work in state.work.values() if work.state in WITH_DEVICE}
        if state.again and policy.mode == "sync":  # a device contributes once to a round
            done = {work.device for work in state.work.values() if work.base == state.version} - busy
            candidates = tuple(candidate for candidate in candidates if candidate.device not in done)
        there = available(policy, candidates, busy, self.now)
        seed = f"{state.run}/{state.seed}/{state.number}/{state.attempt}/{state.made}"
        if policy.mode == "async":
            missing = policy.concurrency - state.count(*WITH_DEVICE)
            offers = self._offers(choose(policy, there.candidates, max(0, missing), seed))
            if state.phase == "selecting" and (offers or state.work):
                self._open(policy.buffer, offers)
            elif offers:
                self.effects.append(events.Assign(offers))
            elif state.phase == "selecting" and self.now >= state.closes:
                self.abandon(there.shortage(1))
        elif state.phase == "selecting":
            count, kept = len(there.candidates), len(state.work) if state.again else 0
            wanted = state.wanted if state.again else policy.wanted(count)
            if count >= policy.quorum - kept:
                chosen = choose(policy, there.candidates, policy.offers(count, wanted - kept), seed)
                self._open(wanted, self._offers(chosen))
            elif self.now >= state.closes:
                self.abandon(there.shortage(policy.quorum - kept))

    def _open(self, wanted: int, offers: tuple[Offer, ...]) -> None:
        closes = self.now + self.state.policy.deadline
        self.state = replace(
            self.state, phase="collecting", opened=self.now, closes=closes, wanted=wanted, trouble="", again=False
        )
        self.effects.append(events.Open(self.state.number, self.state.attempt, self.now, closes, wanted, offers))

    def _offers(self, devices: tuple[str, ...]) -> tuple[Offer, ...]:
        state = self.state
        longest = 1 + (state.policy.max_staleness if state.policy.folds_late else 0)
        closes = self.now + state.policy.deadline * longest
        offers: list[Offer] = []
        for device in devices:
            id = hashlib.sha256(f"{state.run}/{state.made + len(offers)}".encode()).hexdigest()[:16]
            offers.append(Offer(id, device, state.version, closes))
        work = state.work.put(*(OpenAssignment(offer.id, offer.device, offer.base, offer.closes) for offer in offers))
        self.state = replace(state, made=state.made + len(offers), work=work)
        return tuple(offers)

    def fold_arrived(self) -> None:
        """Fold the arrived updates. An update's weight is its number of examples, discounted by its staleness."""
        if self.state.phase == "committing":
            return  # the sum is being committed; these belong to the next one, or to none
        arrived = self.state.work.arrived
        if arrived and self.state.policy.mode == "async":
            arrived = arrived[: max(0, self.state.policy.buffer - self.state.count("folding", "folded"))]
        elif arrived and self.state.policy.folds_late:
            arrived = self._one_a_device(arrived)
        for work in arrived:
            weight = self.state.policy.weight(work.examples, self.state.version - work.base)
            self._put(replace(work, state="folding", weight=weight))
            self.effects.append(events.Fold(work.id, weight))

    def _one_a_device(self, arrived: tuple[OpenAssignment, ...]) -> tuple[OpenAssignment, ...]:
        """The updates of devices that are not in the sum: distinct devices make a quorum, and a second update waits."""
        in_sum = {work.device for work in self.state.work.values() if work.state in ("folding", "folded")}
        first: dict[str, OpenAssignment] = {}
        for work in arrived:
            if work.device not in in_sum:
                first.setdefault(work.device, work)
        return tuple(first.values())

    def expire(self) -> None:
        """Expire the assignments that devices have not finished in time."""
        if self.now < self.state.work.soonest:
            return
        for work in self.state.work.overdue(self.now):
            self.finish(work.id, "expired", "not finished by the deadline")
        self.state = replace(self.state, work=OpenAssignments(self.state.work.values()))

    def decide(self) -> None:
        """Commit, abandon or wait."""
        state, policy = self.state, self.state.policy
        if state.phase == "resting" and self.now >= state.closes:
            self.select()
        elif state.phase == "selecting" and self.now >= state.closes + policy.deadline:
            self.abandon("nobody told which devices there are")
        if state.phase != "collecting" or state.count("folding"):
            return
        folded, over = state.count("folded"), self.now >= state.closes
        coming = state.work.coming(state.version)
        if policy.mode == "async":
            coming = policy.buffer  # more are assigned as devices come, so a few of them can send all that is wanted
        if folded >= state.wanted or (folded >= policy.quorum and (over or not coming)):
            contributors = sorted((work.id, work.weight) for work in state.work.values() if work.state == "folded")
            self.state = replace(state, phase="committing")
            self.effects.append(events.Commit(state.number, state.attempt, tuple(contributors)))
        elif (over or folded + coming < policy.quorum) and state.again:
            self.select()  # other devices are asked for what is missing
        elif over or folded + coming < policy.quorum:
            trouble = f"; {state.trouble}" if state.trouble else ""
            self.abandon(f"{folded} updates came, the quorum is {policy.quorum}{trouble}")

    def committed(self, done: str) -> None:
        state = self.state
        kept = OpenAssignments(work for work in state.work.values() if work.state != "folded")
        self.state = replace(state, version=state.number, attempt=0, failures=0, work=kept, again=False)
        if state.policy.evaluate:
            self.effects.append(events.Evaluate(self.state.version))
        done = done or ("" if self.state.version < state.rounds else "its last round is committed")
        if done:
            self.end("finished", done)
            return
        self.drop_stale()
        self.select()
        self.fold_arrived()

    def abandon(self, reason: str) -> None:
        """Give the attempt up; its assignments are cancelled, and after a rest it is tried again."""
        state = self.state
        self.finish_all(
            ("offered", "accepted", "arrived", "folding", "folded"), "cancelled", f"the round was abandoned: {reason}"
        )
        self.effects.append(events.Abandon(state.number, state.attempt, reason))
        failures = state.failures + 1
        rest = self.now + state.policy.rest(failures)
        self.state = replace(
            self.state, phase="resting", attempt=state.attempt + 1, failures=failures, closes=rest, again=False
        )
        if failures >= state.policy.attempts:
            self.pause(f", last because {reason}")

    def pause(self, why: str) -> None:
        """Give the run up until an administrator has seen to it."""
        state = self.state
        self.end("paused", f"round {state.number} was abandoned {state.failures} times in a row{why}")

    def select(self) -> None:
        """Wait for devices, at most the policy's deadline."""
        self.state = replace(
            self.state, phase="selecting", opened=self.now, closes=self.now + self.state.policy.deadline
        )
        self.effects.append(events.Look())

    def drop_stale(self) -> None:
        """Cancel assignments of an older checkpoint; when late updates are folded, only those beyond `max_staleness`."""
        for work in list(self.state.work.values()):
            staleness = self.state.version - work.base
            if not self.state.policy.folds_late and staleness > 0:
                self.finish(work.id, "cancelled", f"round {work.base + 1} was committed without it")
            elif staleness > self.state.policy.max_staleness:
                self.finish(work.id, "cancelled", f"{staleness} checkpoints were committed since it was assigned")

    def end(self, state: Literal["finished", "paused", "stopped"], reason: str) -> None:
        if state == "finished":
            self.finish_all(("offered", "accepted", "arrived", "folding"), "cancelled", "the run has ended")
        self.state = replace(self.state, phase="ended")
        self.effects.append(events.End(state, reason))

    def finish_all(self, states: tuple[str, ...], final: FinalState, reason: str) -> None:
        for work in list(self.state.work.values()):
            if work.state in states:
                self.finish(work.id, final, reason)

    def finish(self, id: str, final: FinalState, reason: str) -> None:
        tell = self.state.work[id].state in WITH_DEVICE
        self._drop(id)
        self.effects.append(events.Finish(id, final, reason, tell))

    def _is(self, id: str, *states: str) -> bool:
        return id in self.state.work and self.state.work[id].state in states

    def _put(self, work: OpenAssignment) -> None:
        self.state = replace(self.state, work=self.state.work.put(work))

    def _drop(self, id: str) -> None:
        self.state = replace(self.state, work=self.state.work.without(id))
