"""The rounds' port to virtual devices: it plays a fleet in virtual time, as fast as the machine computes."""

import heapq
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from flwr.app import Message

from umbel.errors import UmbelError
from umbel.messages import Blob, Train
from umbel.metrics import Sums
from umbel.plan import Plan
from umbel.tensors import Tensors
from umbel_edge.training.litert_trainer import LiteRTTrainer
from umbel_server.rounds.engine import Record
from umbel_server.rounds.events import Abandon, Ended, Event, Finish, Offer, Open, Uploaded
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.rounds.selection import Candidate, available
from umbel_server.runs.instructions import instruction
from umbel_server.runs.port import Arrival, Cost, NewCheckpoint, Start
from umbel_server.runs.settings import RunSettings
from umbel_sim.engines import Done, Engine, Job
from umbel_sim.fleet_data import Fleet, examples_of
from umbel_sim.simulation.journal import Journal
from umbel_sim.simulation.kept_updates import KeptUpdates
from umbel_sim.simulation.settings import NO_RULES
from umbel_sim.simulation.snapshot import GivenAssignment, Snapshot
from umbel_sim.simulation.tally import Tally
from umbel_sim.simulation.world import Course, Load, World
from umbel_sim.virtual.seeds import generator

NOWHERE = Blob("0" * 64, 1)
"""Where virtual devices fetch plan and weights from: they have them."""

RUN = "simulation"

SHORTLIST = 2.0
"""Devices that are looked at first, for each that a round wants."""

MOST_SEEN = 100_000
"""Devices of which it is remembered how they were found until that changes."""

LOOKS_A_SECOND = 20.0
"""Devices that are looked at in a virtual second, at most, while a round waits for devices that can be had."""


class Untrained(Exception):
    """A device's loss is not a number any more, or its examples cannot be had: which device, in which round, what to do.

    No UmbelError: with one, rounds go on without the update.
    """


@dataclass
class _Work:
    """An assignment under way; `future` is its training, once that is begun."""

    given: GivenAssignment
    weights: Tensors
    course: Course
    future: "Future[Done] | None" = field(default=None, repr=False)


@dataclass(frozen=True)
class _Examination:
    """An evaluation under way."""

    device: int
    name: str
    weights: Tensors
    course: Course


class SimulationPort:
    """See umbel_server.runs.port.Port. Time passes only in `wait`, from one event to the next.

    An assignment's course is known when it is offered (`World.course`); its training is computed when its update is about
    to come, by `engine`, so what over-selected, late and vanished devices would have trained costs virtual time only.
    """

    def __init__(
        self, world: World, load: Load, fleet: Fleet, plan: Plan, engine: Engine, journal: Journal, tally: Tally
    ) -> None:
        self._world, self.fleet, self.plan = world, fleet, plan
        self._engine, self._journal, self._tally = engine, journal, tally
        self._batch, self._load = plan.manifest.batch_size, load
        self._work: dict[str, _Work] = {}
        self._examinations: dict[str, _Examination] = {}
        self._examiner = LiteRTTrainer("")
        self._events: list[tuple[float, int, str, str]] = []
        self._order = 0
        self._kept = KeptUpdates()
        self._policy = RoundPolicy()
        self._version, self._weights = 0, plan.initial_weights()
        self._untrained = plan.manifest.untrained
        self._wanted, self._came = math.inf, 0
        self._attempt = 0
        self._assigned: dict[int, float] = {}
        self._changes = math.inf
        self._seen: dict[int, tuple[float, Candidate]] = {}
        self._left = False
        self.now = 0.0

    @property
    def threads(self) -> int:
        """One: workers have the others."""
        return 1

    @property
    def delta_dtype(self) -> str:
        """Devices send updates in the weights' own dtypes."""
        return ""

    def leave(self) -> None:
        """Make `wait` return None: the simulation goes on from its newest checkpoint another time."""
        self._left = True

    def start(self, settings: RunSettings) -> Start:
        """Where the journal's newest checkpoint left off; a new simulation evaluates the initial weights."""
        self._policy = settings.policy
        snapshot = self._journal.snapshot()
        if snapshot is None:
            snapshot = Snapshot(0, 0.0, 0, self._weights, {}, {}, ())
            self._journal.begin(snapshot)
        self._version, self._weights, self.now = snapshot.version, snapshot.weights, snapshot.now
        self._assigned = dict(snapshot.assigned)
        for given in snapshot.work:
            self._put(given, snapshot.bases[given.base])
        work = tuple(one.given.work for one in self._work.values())
        record = Record(
            RUN, settings.seed, settings.policy, settings.rounds, snapshot.version, work=work, made=snapshot.made
        )
        return Start(record, self._weights, snapshot.strategy, self._journal.metrics(), self._untrained)

    def node(self, device: str) -> int:
        """Node ids are device numbers from 1 on."""
        return self._world.number(device) + 1

    def name(self, node: int) -> str:
        """The device of a node id; raises UmbelError when there is none."""
        if not 1 <= node <= self._world.devices:
            raise UmbelError(f"node {node} is not one of the simulation's, 1 to {self._world.devices}")
        return self._world.name(node - 1)

    def candidates(self) -> tuple[Candidate, ...]:
        """The devices that can be chosen now.

        When devices are chosen at random and a round wants a number of them, a random list of those that can be had that
        is long enough: choosing from it is choosing from all of them, and costs no look at every one.
        """
        world, policy = self._world, self._policy
        needed = math.inf
        if policy.select == "random" and (policy.target or policy.mode == "async"):
            needed = policy.concurrency if policy.mode == "async" else policy.offers(world.devices, policy.target)
            needed += len(self._work)
        if needed >= world.devices:
            return self._every_candidate()
        self._changes = -math.inf  # not every device is looked at
        draw = generator(world.seed, "shortlist", self._version, self._attempt, self.now)
        found: list[Candidate] = []
        count = min(world.devices, math.ceil(needed * SHORTLIST))
        looked = draw.sample(range(world.devices), count)
        while True:
            for device in looked:
                _, candidate = self._look_at(device)
                if available(policy, (candidate,), (), self.now).candidates:
                    found.append(candidate)
                    if len(found) >= needed:
                        return tuple(found)
            if count == world.devices:
                return self._every_candidate()
            count = world.devices if count * 16 > world.devices else count * 8
            found, looked = [], draw.sample(range(world.devices), count)

    def _every_candidate(self) -> tuple[Candidate, ...]:
        seen, found = self._seen, []
        for device in range(self._world.devices):
            if device not in seen or seen[device][0] <= self.now:
                seen[device] = self._look_at(device)
            found.append(seen[device][1])
        self._changes = min(changes for changes, _ in seen.values())
        if len(seen) > MOST_SEEN:
            seen.clear()
        return tuple(found)

    def next_look(self, now: float) -> float:
        """When a round that found too few devices at `now` should look again: once something has changed for one."""
        return max(self._changes, now + max(1.0, min(3600.0, self._world.devices / LOOKS_A_SECOND)))

    def _look_at(self, device: int) -> tuple[float, Candidate]:
        """When what is said of a device changes, and what that is now."""
        world, rules = self._world, self._world.conditions
        now = world.availability.at(device, self.now)
        changes = world.changes(now, self.now, rules)
        gap = self._policy.minimum_gap
        if gap and device in self._assigned and self.now - self._assigned[device] < gap:
            changes = min(changes, max(self._assigned[device] + gap, self.now + 0.001))  # the sum is rounded
        size = self.fleet.size(device) if rules.min_examples or self._policy.select == "most-examples" else 0
        reasons = world.broken(device, now, self.now, rules, size)
        assigned = self._assigned.get(device, -math.inf)  # virtual time begins at 0: that is no word for never
        labels = {"class": world.kind(device).name}
        return changes, Candidate(world.name(device), now.online, labels, size, reasons, "", assigned)

    def offer(self, opened: Open | None, offers: Sequence[tuple[Offer, Message]]) -> None:
        """Tell the devices; what becomes of it is known from now on."""
        self._journal.save_when_due()  # after what the checkpoint's evaluation on devices adds to it
        if opened is not None:
            self._wanted, self._came = opened.wanted, 0
            self._attempt = opened.attempt
            self._tally.open(opened.number, opened.attempt, self.now)
        for offer, message in offers:
            self.assign(offer, message, self._weights)
        self._ahead()

    def assign(self, offer: Offer, message: Message, weights: Tensors) -> None:
        """Give one device an assignment."""
        rate = self.plan.manifest.learning_rate
        how = instruction(message, offer.id, RUN, NOWHERE, NOWHERE, offer.closes, rate, self._policy.requires)
        assert isinstance(how, Train)
        given = GivenAssignment(
            offer.id, self._world.number(offer.device), offer.device, offer.base, offer.closes, self.now, how
        )
        self._put(given, weights)
        declines = self._work[given.id].course.outcome == "declined"
        if self._policy.select == "least-recent" or self._policy.minimum_gap:
            self._assigned[given.device] = self.now
            self._seen.pop(given.device, None)
        self._tally.offered(given.device, 0 if declines else self._load.down)

    def examine(self, id: str, device: str, weights: Tensors) -> None:
        """Let one device evaluate weights on its examples: a third of a training step's arithmetic for every batch."""
        number = self._world.number(device)
        size = self.fleet.size(number)
        load = replace(self._load, up=0, operations=self._load.operations / 3)
        course = self._world.course(number, id, self.now, load, -(-size // self._batch), size, NO_RULES)
        self._examinations[id] = _Examination(number, device, weights, course)
        if course.ends < math.inf:
            self._push(course.ends, course.outcome, id)

    def examined(self, id: str) -> tuple[int, Sums]:
        """The examples of an evaluation that is done, and the sums that a device would send; raises Untrained."""
        asked = self._examinations.pop(id)
        manifest = self.plan.manifest
        try:
            examples = examples_of(
                self.fleet, asked.device, {**manifest.inputs, **manifest.targets}, manifest.value_counts
            )
            return examples.count, self._examiner.evaluate(self.plan, asked.weights, examples, lambda: None)
        except UmbelError as error:
            raise Untrained(f"{asked.name} cannot evaluate: {error}") from error

    def _put(self, given: GivenAssignment, weights: Tensors) -> None:
        size = self.fleet.size(given.device)
        batches = -(-size // self._batch) * given.how.epochs
        steps = min(batches, given.how.max_steps) if given.how.max_steps else batches
        course = self._world.course(given.device, given.id, given.offered, self._load, steps, size, given.how.requires)
        self._work[given.id] = _Work(given, weights, course)
        if course.ends < math.inf:
            self._push(course.ends, course.outcome, given.id)

    def _push(self, time: float, what: str, id: str) -> None:
        heapq.heappush(self._events, (time, self._order, what, id))
        self._order += 1

    def wait(self, until: float) -> list[Event] | None:
        """The next thing that happens to an assignment, at the latest at `until`."""
        if self._left:
            return None
        while self._events and self._events[0][3] not in self._work and self._events[0][3] not in self._examinations:
            heapq.heappop(self._events)  # it has its final state
        if not self._events or self._events[0][0] > until:
            if until == math.inf:
                raise UmbelError("nothing happens any more in this simulation: a longer or another trace is needed")
            self.now = max(self.now, until)
            return []
        time, _, what, id = heapq.heappop(self._events)
        self.now = max(self.now, time)
        if (asked := self._examinations.get(id)) is not None:
            if what == "uploaded":
                return [Uploaded(self.now, id, self.fleet.size(asked.device))]
            del self._examinations[id]
            return [Ended(self.now, id, f"{asked.name} {what}: {asked.course.reason}")]
        work = self._work[id]
        if what == "uploaded":
            self._came += 1
            self._begin(work)
            self._ahead()
            return [Uploaded(self.now, id, self.fleet.size(work.given.device))]
        self._settle(id, what)
        return [Ended(self.now, id, f"{work.given.name} {what}: {work.course.reason}")]

    def _begin(self, work: _Work) -> None:
        if work.future is None:
            work.future = self._engine.submit(Job(work.given.device, work.given.name, work.weights, work.given.how))

    def _ahead(self) -> None:
        """Begin the trainings whose updates come next, so that no worker waits for the one that is folded now."""
        most = 2 * self._engine.workers
        if self._policy.mode == "sync" and self._policy.late == "drop":
            most = int(min(most, self._wanted - self._came))
        for _, _, what, id in heapq.nsmallest(4 * max(most, 0), self._events):
            if most <= 0:
                return
            if what == "uploaded" and id in self._work:
                self._begin(self._work[id])
                most -= 1

    def arrival(self, id: str) -> Arrival:
        """The update of an assignment, as soon as it is computed; raises Untrained, which ends the rounds."""
        work = self._work[id]
        self._begin(work)
        assert work.future is not None
        number, name = work.given.how.round, work.given.name
        try:
            done = work.future.result()
        except UmbelError as error:
            raise Untrained(f"round {number}: {name} cannot train: {error}") from error
        work.future = None
        loss = done.metrics["loss"]
        if not isinstance(loss, float) or not math.isfinite(loss):
            raise Untrained(
                f"round {number}: the loss of {name} is {loss}; lower the learning rate "
                f"({work.given.how.learning_rate:g}) or look at its {done.examples} examples"
            )
        update = self._kept.update(id, done.delta, done.squares)
        return Arrival(name, update, done.examples, done.metrics, done.examples)

    def finish(self, finish: Finish) -> None:
        """An assignment has its final state."""
        self._examinations.pop(finish.id, None)
        if finish.id in self._work:
            vanished = finish.state == "expired" and self._work[finish.id].course.outcome == "vanished"
            self._settle(finish.id, "vanished" if vanished else finish.state)

    def _settle(self, id: str, state: str) -> None:
        work = self._work.pop(id)
        if work.future is not None:
            work.future.cancel()
        self._kept.drop(id)
        kind = self._world.kind(work.given.device)
        trained = work.course.trained(self.now)
        sent = self._load.up if self.now >= work.course.ends and work.course.outcome == "uploaded" else 0
        watts = kind.training_watts, kind.network_watts
        fetched = 0 if state == "declined" else self._load.down
        network = fetched / kind.download + sent / kind.upload
        self._tally.settled(work.given.device, state, trained, sent, trained * watts[0] + network * watts[1])

    def abandon(self, abandon: Abandon) -> None:
        """Note it."""
        self._attempt = abandon.attempt + 1
        self._tally.abandoned(abandon.number, abandon.attempt, abandon.reason, self.now)

    def commit(self, checkpoint: NewCheckpoint) -> dict[str, float]:
        """Settle the contributors, evaluate, and remember."""
        for id, _ in checkpoint.contributors:
            self._settle(id, "folded")
        self._version, self._weights, self._attempt = checkpoint.number, checkpoint.weights, 0
        row = self._tally.row(checkpoint, self.now)
        bases = {work.given.base: work.weights for work in self._work.values()}
        snapshot = Snapshot(
            checkpoint.number,
            self.now,
            self._tally.made,
            checkpoint.weights,
            checkpoint.strategy,
            bases,
            tuple(work.given for work in self._work.values()),
            tuple(self._assigned.items()),
        )
        return self._journal.committed(snapshot, row)

    def evaluate(self, number: int, messages: Mapping[str, Message]) -> None:
        """Devices evaluate in no virtual time: what they find is in the round's row."""
        self._journal.evaluated(number, [self._world.number(name) for name in messages], self._weights)

    def cost(self) -> Cost:
        """The cost so far, in virtual hours and bytes."""
        return Cost(self.now / 3600, self._tally.bytes)

    def close(self) -> None:
        """Remove the files of kept updates."""
        self._kept.close()
