"""What must hold after every event of a schedule. Nothing here asks the engine what it thinks of itself but `State`."""

import math
from types import ModuleType
from typing import TYPE_CHECKING

from tests.faults.schedules.store import AssignmentRow
from umbel_server.rounds import events
from umbel_server.rounds.assignments import FINAL, LIVE, WITH_DEVICE
from umbel_server.rounds.engine import Record, State
from umbel_server.rounds.open_assignments import OpenAssignment

if TYPE_CHECKING:
    from tests.faults.schedules.world import World

MOST_STEPS_AT_ONCE = 400
"""More steps than this without time passing are a spin; a storm of repeated messages takes a tenth."""


class Broken(AssertionError):
    """An invariant does not hold."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)


class Invariants:
    """Watches one world."""

    def __init__(self, world: "World") -> None:
        self._world, self._store, self._policy = world, world.store, world.policy
        self._states: dict[str, str] = {}
        self._folded: set[str] = set()
        self._attempt_of: dict[str, tuple[int, int]] = {}
        self._abandoned: set[tuple[int, int]] = set()
        self._opened_since_resumed: set[tuple[int, int]] = set()
        self._now, self._steps = -1.0, 0
        self.in_a_row = 0
        self.clock_went_back = False

    # What the durable state shows.

    def check(self) -> None:
        """After every event of the world."""
        for row in self._store.moved:
            self._moved(row)
        self._store.moved.clear()
        life = self._world.life
        if life is not None and life.state is not None and not life.effects:
            self._at_rest(life.state, life.sum, bool(life.news))

    def _moved(self, row: AssignmentRow) -> None:
        before = self._states.get(row.id)
        require(before not in FINAL or before == row.state, f"{row.id} went from final {before} to {row.state}")
        require(row.state in LIVE or row.state in FINAL, f"{row.id} is {row.state}")
        if row.state == "uploaded":
            sent = self._world.devices[row.device].sent.get(row.id)
            require(sent == row.examples, f"{row.id} is uploaded with {row.examples} examples, its device sent {sent}")
        self._states[row.id] = row.state

    def _at_rest(self, state: State, sum: dict[str, float], news: bool) -> None:
        """The engine has nothing to do: it agrees with the volatile sum, with the database, and waits for something."""
        folded = {work.id: work.weight for work in state.work.values() if work.state == "folded"}
        require(state.phase == "ended" or folded == sum, f"the engine has folded {folded}, the sum is of {sum}")
        require(not state.count("folding") or state.phase == "ended", "an update is being folded and no effect says so")
        if news or state.phase == "ended":
            return
        require(math.isfinite(state.wake), f"the engine waits for ever, {state.phase}")
        require(state.phase != "committing", "nothing commits what is committing")
        if state.phase != "ended":
            room = self._policy.mode == "sync" or len(folded) < self._policy.buffer
            in_sum = {work.device for work in state.work.values() if work.state == "folded"}
            seconds = self._policy.mode == "sync" and {work.device for work in state.work.arrived} <= in_sum
            waits = state.count("arrived") and not seconds
            require(not (room and waits), "an update waits although there is room in the sum")
        if state.phase == "collecting":
            require(len(folded) < state.wanted, f"{len(folded)} of {state.wanted} are folded and nothing is committed")
        live = {
            row.id: "with device" if row.state in WITH_DEVICE else "here"
            for row in self._store.assignments.values()
            if row.state in LIVE
        }
        known = {work.id: "with device" if work.state in WITH_DEVICE else "here" for work in state.work.values()}
        require(live == known, f"the database has {live}, the engine {known}")
        require(state.version == self._store.version, f"the engine is at {state.version}")
        counted = state.failures == self.in_a_row or self.clock_went_back
        require(counted, f"{self.in_a_row} attempts in a row were abandoned, the engine counts {state.failures}")

    def at_the_end(self) -> None:
        """When the world is over."""
        for row in self._store.assignments.values():
            require(self._states[row.id] == row.state, f"{row.id} changed unseen")
            required = row.state in FINAL or (self._store.state == "paused" and row.state == "uploaded")
            require(required, f"the run is {self._store.state} and {row.id} is {row.state}")
            require((row.state == "folded") == (row.id in self._folded), f"{row.id} is {row.state}")

    # What the engine does.

    def stepped(
        self, engine: ModuleType, before: State, event: events.Event, after: State, effects: tuple[events.Effect, ...]
    ) -> None:
        """After every step of the engine."""
        if self._now != self._world.now:
            self._now, self._steps = self._world.now, 0
        self._steps += 1
        require(self._steps <= MOST_STEPS_AT_ONCE, "the engine steps and steps and no time passes")
        if self._world.rng_of_checks.random() < 0.06:
            work = dict(before.work)
            again = engine.step(before, event)
            require(again == (after, effects), "the same state and event gave another result")
            require(dict(before.work) == work, "the state was changed in place")
        if effects:
            self._effects(before, event, after, effects)

    def recovered(self, record: Record, state: State, effects: tuple[events.Effect, ...]) -> None:
        """After the engine recovered from the durable state."""
        require(state.version == self._store.version, f"recovered at {state.version}")
        if not record.done and record.failures < self._policy.attempts and record.version < record.rounds:
            require(state.phase != "ended" or self._ended_by_failures(effects), "it ended although nothing ended it")

    def _ended_by_failures(self, effects: tuple[events.Effect, ...]) -> bool:
        return any(isinstance(effect, events.Abandon) for effect in effects)

    def _effects(self, before: State, event: events.Event, after: State, effects: tuple[events.Effect, ...]) -> None:
        new: set[str] = set()
        for effect in effects:
            match effect:
                case events.Fold(id=id) | events.Finish(id=id):
                    known = id in self._store.assignments or id in before.work or id in new
                    require(known, f"nobody knows assignment {id}")
                    if isinstance(effect, events.Finish) and id in before.work:
                        self._may_finish(before.work[id], effect, after, event, effects)
                case events.Open(offers=offers) | events.Assign(offers=offers):
                    new = {offer.id for offer in offers}
                    self._chosen(after, event, offers)
                    if isinstance(effect, events.Open):
                        self._opened(effect, event, before)
                case events.Commit():
                    self._may_commit(after, event.now, len(effect.contributors))
                case events.Abandon():
                    self._may_abandon(before, event)
                    rest = min(60.0, self._policy.backoff * 2.0 ** (after.failures - 1))
                    rests = after.phase != "resting" or after.closes == event.now + rest
                    require(rests, f"it rests until {after.closes}, not for {rest} s")
                case _:
                    pass

    def _may_finish(
        self,
        work: OpenAssignment,
        finish: events.Finish,
        after: State,
        event: events.Event,
        effects: tuple[events.Effect, ...],
    ) -> None:
        """No device is stopped and no update thrown away without a reason."""
        policy = self._policy
        allowed = policy.max_staleness if policy.late == "fold" or policy.mode == "async" else 0
        match finish.state:
            case "expired":
                require(event.now >= work.closes, f"{work.id} expired {work.closes - event.now} s early")
            case "rejected":
                require(isinstance(event, events.Refused), f"{work.id} was rejected by nobody")
            case "cancelled":
                over = any(isinstance(effect, events.Abandon | events.End) for effect in effects)
                require(over or after.version - work.base > allowed, f"{work.id} was cancelled: {finish.reason}")
            case _:
                require(False, f"{work.id} ends as {finish.state}")

    def _chosen(self, state: State, event: events.Event, offers: tuple[events.Offer, ...]) -> None:
        policy = self._policy
        assert isinstance(event, events.Candidates)
        there = {candidate.device: candidate for candidate in event.candidates}
        for offer in offers:
            candidate = there[offer.device]
            require(candidate.online and not candidate.quarantined, f"{offer.device} cannot train")
            require(policy.labels.items() <= dict(candidate.labels).items(), f"{offer.device} has not the labels")
            rested = event.now - candidate.assigned >= policy.minimum_gap or not policy.minimum_gap
            require(rested, f"{offer.device} was assigned {event.now - candidate.assigned} s ago")
            require(offer.base == state.version, f"{offer.id} trains from {offer.base}, not from the newest")
            require(offer.closes > event.now, f"{offer.id} closes before it opens")
            others = [
                work.id
                for work in state.work.values()
                if (work.device, work.base) == (offer.device, offer.base) and work.id != offer.id
            ]
            require(policy.mode == "async" or not others, f"{offer.device} contributes {others} to this round already")
        if policy.mode == "async":
            require(state.count(*WITH_DEVICE) <= policy.concurrency, "more devices train than the policy lets")

    def _opened(self, opened: events.Open, event: events.Event, before: State) -> None:
        policy = self._policy
        require(opened.number == self._store.version + 1, f"round {opened.number} is opened")
        require(opened.number <= self._store.rounds, f"round {opened.number} of {self._store.rounds} is opened")
        require(self.in_a_row < policy.attempts or self.clock_went_back, f"attempt {self.in_a_row + 1} in a row")
        self._opened_since_resumed.add((opened.number, opened.attempt))
        interrupted = self._store.attempts.get((opened.number, opened.attempt))
        if interrupted is not None:
            require(opened.wanted == interrupted.wanted, f"{opened.wanted} are wanted, {interrupted.wanted} were")
        if policy.mode == "sync":
            kept = len(before.work) if interrupted is not None else 0
            most = math.ceil(max(0, opened.wanted - kept) * policy.over_selection - 1e-9)
            asked = f"{len(opened.offers)} are asked for {opened.wanted}, and {kept} are there"
            require(policy.quorum - kept <= len(opened.offers) <= most, asked)
        require(opened.wanted >= policy.quorum, f"{opened.wanted} are wanted")
        require(opened.closes == event.now + policy.deadline, "the deadline is not the policy's")

    def _may_commit(self, state: State, now: float, count: int) -> None:
        policy = self._policy
        require(count >= policy.quorum, f"{count} updates are committed, the quorum is {policy.quorum}")
        coming = policy.mode == "async" or any(
            work.state in WITH_DEVICE and work.base == state.version for work in state.work.values()
        )
        enough = count >= state.wanted or now >= state.closes or not coming
        require(enough, f"{count} of {state.wanted} are committed before the deadline and others are coming")

    def _may_abandon(self, state: State, event: events.Event) -> None:
        if state.phase == "committing":
            require(isinstance(event, events.Unable), "a commit was abandoned")
        elif state.phase == "collecting":
            about = getattr(event, "id", "")
            folded = state.count("folded") + isinstance(event, events.Folded)
            coming = sum(
                work.state in WITH_DEVICE
                and work.base == state.version
                and work.closes > event.now
                and (work.id != about or isinstance(event, events.Accepted))
                for work in state.work.values()
            )
            over = event.now >= state.closes
            hopeless = self._policy.mode == "sync" and folded + coming < self._policy.quorum
            require(over or hopeless, "an attempt was abandoned before its deadline")
            require(folded < self._policy.quorum, "an attempt with a quorum was abandoned")
            since = (state.number, state.attempt) in self._opened_since_resumed or self.clock_went_back
            require(since or not self._store.resumed, "an attempt was abandoned that a pause had interrupted")

    # What the server does for it.

    def offered(self, opened: events.Open | None, offers: tuple[events.Offer, ...]) -> None:
        """Before offers become durable."""
        at_work = {row.device for row in self._store.assignments.values() if row.state in WITH_DEVICE}
        if opened is not None:
            self._open = opened.number, opened.attempt
            others = [key for key, row in self._store.attempts.items() if row.state == "open" and key != self._open]
            require(not others, f"{self._open} is opened and {others} is open")
        for offer in offers:
            require(offer.device not in at_work, f"{offer.device} has an assignment already")
            at_work.add(offer.device)
            self._attempt_of[offer.id] = self._open

    def folds(self, id: str, sum: dict[str, float]) -> None:
        """Before an update is added to the sum."""
        require(id not in sum, f"{id} is folded twice")
        require(id not in self._folded, f"{id} is folded again after it was committed")
        require(self._store.assignments[id].state == "uploaded", f"{id} is {self._store.assignments[id].state}")
        require(self._attempt_of[id] not in self._abandoned, f"{id} is of the abandoned attempt {self._attempt_of[id]}")

    def abandons(self, abandon: events.Abandon) -> None:
        """Before an attempt is noted as abandoned."""
        require(abandon.number == self._store.version + 1, f"round {abandon.number} is abandoned")
        live = [row.id for row in self._store.assignments.values() if row.state in LIVE]
        require(not live, f"{live} outlive their attempt")
        self._abandoned.add((abandon.number, abandon.attempt))
        self.in_a_row += 1

    def commits(self, commit: events.Commit, sum: dict[str, float]) -> None:
        """Before a checkpoint becomes durable."""
        policy = self._policy
        require(commit.number == self._store.version + 1, f"{commit.number} follows {self._store.version}")
        require(dict(commit.contributors) == sum, f"{commit.contributors} are committed, the sum is of {sum}")
        require(len(sum) == len(commit.contributors), "a contributor is named twice")
        require(len(sum) >= policy.quorum, f"{len(sum)} contributed, the quorum is {policy.quorum}")
        devices = {self._store.assignments[id].device for id in sum}
        require(policy.mode == "async" or len(devices) == len(sum), "a device contributed twice to a checkpoint")
        require(policy.mode == "sync" or len(sum) <= policy.buffer, f"{len(sum)} are in a buffer of {policy.buffer}")
        for id, weight in commit.contributors:
            row = self._store.assignments[id]
            require(id not in self._folded, f"{id} is in two checkpoints")
            require(not row.wrong, f"{id} was refused")
            require(self._attempt_of[id] not in self._abandoned, f"{id} is of an abandoned attempt")
            staleness = commit.number - 1 - row.base
            allowed = policy.max_staleness if policy.late == "fold" or policy.mode == "async" else 0
            require(0 <= staleness <= allowed, f"{id} is {staleness} checkpoints stale")
            examples = self._world.devices[row.device].sent[id]
            right = examples / (1 + staleness) ** policy.staleness_exponent
            require(math.isclose(weight, right), f"{id} weighs {weight}, it should weigh {right}")
            self._folded.add(id)
        self.in_a_row, self.clock_went_back = 0, False

    def ends(self, state: str, ordered: bool) -> None:
        """When the run's end is noted; everything that the engine wanted of its assignments is done."""
        gave_up = self.in_a_row >= self._policy.attempts or self.clock_went_back
        require(state == "finished" or ordered or gave_up, f"it is {state} after {self.in_a_row} abandoned attempts")
        over = self._store.version in (self._store.rounds, self._world.faults.done_at)
        require(state != "finished" or over, f"it is finished at checkpoint {self._store.version}")
        states = WITH_DEVICE if state == "paused" else LIVE
        live = [row.id for row in self._store.assignments.values() if row.state in states]
        require(not live, f"the run is {state} and {live} are not finished")

    def resumed(self) -> None:
        """When an administrator resumes the run.

        The database counts what was abandoned after that by its clock: one that went back misleads it until a commit.
        """
        self.in_a_row = 0
        self._opened_since_resumed.clear()
