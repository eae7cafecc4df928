"""One schedule: a run, its server, its devices and the network between them, in virtual time and all from one seed."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

from tests.faults.schedules.devices import HABITS, Device, Said
from tests.faults.schedules.invariants import Invariants, require
from tests.faults.schedules.store import AssignmentRow, CommandRow, DeviceRow, Store
from umbel_server.rounds import engine as the_engine
from umbel_server.rounds import events
from umbel_server.rounds.engine import State
from umbel_server.rounds.policy import RoundPolicy

MOST_EVENTS = 20_000


class Crashed(Exception):
    """The server is killed here."""


@dataclass
class Life:
    """What the server holds in memory for the run, from one start to the crash or the end that follows.

    `sum` is what the aggregator holds: assignments and their weights.
    """

    state: State | None = None
    effects: deque[events.Effect] = field(default_factory=deque)
    news: list[events.Event | None] = field(default_factory=list)
    sum: dict[str, float] = field(default_factory=dict)
    waits: int = 0
    waiting: bool = False
    ordered: bool = False


@dataclass(frozen=True)
class Faults:
    """How likely things go wrong, until the world becomes `calm`."""

    calm: float
    crash: float
    loss: float
    repeat: float
    late: float
    dawdle: float
    unable: float
    eager: bool
    """Take in what happened between two effects too."""
    done_at: int
    """The checkpoint that reaches the run's goal."""


def policy_of(rng: random.Random, devices: int) -> RoundPolicy:
    """Any policy that a run of a few devices could have."""
    quorum = rng.randint(1, min(4, devices))
    return RoundPolicy(
        target=rng.choice((0, 0, quorum, rng.randint(quorum, devices + 1))),
        fraction=rng.choice((1.0, rng.uniform(0.2, 1))),
        over_selection=rng.choice((1.0, 1.3, 2.0)),
        quorum=quorum,
        deadline=float(rng.randint(5, 20)),
        attempts=rng.randint(1, 4),
        backoff=rng.choice((0.0, 1.0, 3.0)),
        select=rng.choice(("random", "least-recent", "most-examples")),
        labels=rng.choice(({}, {}, {"site": "here"})),
        minimum_gap=rng.choice((0.0, 0.0, 1.0)),
        late=rng.choice(("drop", "fold")),
        staleness_exponent=rng.choice((0.0, 0.5, 1.0)),
        max_staleness=rng.randint(0, 3),
        mode=rng.choice(("sync", "sync", "async")),
        buffer=rng.randint(quorum, quorum + 3),
        concurrency=rng.randint(1, devices + 1),
        evaluate=rng.randint(0, 2),
        max_rejections=rng.randint(0, 3),
    )


class World:
    """The world of one seed. `run` raises Broken when an invariant does not hold; `said` collects a readable trace."""

    def __init__(self, seed: int, engine: ModuleType = the_engine, said: list[str] | None = None) -> None:
        self.seed, self.engine, self._said = seed, engine, said
        rng = self.rng = random.Random(seed)
        self.rng_of_checks = random.Random(seed + 1)  # so that checks may change and schedules stay
        count = rng.randint(1, 7)
        self.policy = policy_of(rng, count)
        deadline = self._deadline = self.policy.deadline
        self.now, self.offset = 0.0, 1000.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = itertools.count()
        self.faults = Faults(
            calm=rng.uniform(1, 8) * deadline,
            crash=rng.choice((0.0, 0.0, 0.02, 0.05, 0.15)),
            loss=rng.choice((0.0, 0.05, 0.25)),
            repeat=rng.choice((0.0, 0.1, 0.3)),
            late=rng.choice((0.0, 0.1, 0.3)),
            dawdle=rng.choice((0.0, 0.0, 0.3, 0.8)),
            unable=rng.choice((0.0, 0.0, 0.2)),
            eager=rng.random() < 0.4,
            done_at=rng.choice((99, 99, 2)),
        )
        self._resend = rng.uniform(0.2, 0.6) * deadline, rng.uniform(0.5, 1.5) * deadline
        self._look = rng.choice((0.05, 0.2)) * deadline
        self._skew = rng.choice((0.0, 0.0, rng.uniform(-2, 2)))
        rows, self.devices = {}, {}
        good = rng.random()
        for index in range(count):
            name = f"d{index}"
            labels = {"site": "here"} if rng.random() < 0.8 else {}
            rows[name] = DeviceRow(name, labels, rng.randrange(1, 50))
            habits = tuple(habit for habit in HABITS[1:] if rng.random() < 0.3) or HABITS[:1]
            if rng.random() < good:
                habits = (*habits, *HABITS[:1] * 5)
            self.devices[name] = Device(
                name, rng, deadline, habits, self._after, self._from_device, self._presence, rng.random() < 0.9
            )
        self.store = Store(self.policy, rng.randint(1, 4), rows)
        self.life: Life | None = None
        self.up = False
        self.calm = False
        self._abandoned_in_calm = 0
        self.watch = Invariants(self)

    @property
    def clock(self) -> float:
        """The server's clock, which may jump."""
        return self.now + self.offset

    def run(self) -> Store:
        """Play the schedule to the run's end; returns what is durable then."""
        rng, faults = self.rng, self.faults
        if self._said is not None:
            self._say(f"{self.policy}\n{faults}\n{self.store.rounds} rounds; {len(self.devices)} devices: ")
            for device in self.devices.values():
                self._say(f"{device.name} {self.store.devices[device.name].labels} {sorted(set(device.habits))}")
        self._start()
        self._after(self._deadline * 0.1, self._sweep)
        self._after(faults.calm, self._become_calm)
        for what in (self._crash, self._start_over, self._jump, self._administer, self._move_device):
            for _ in range(rng.choice((0, 0, 1, 2, 4))):
                self._after(rng.uniform(0, faults.calm), what)
        self._most = (self.store.rounds + 6) * 8 * self._deadline + 400 + faults.calm
        over = 0.0
        for _ in range(MOST_EVENTS):
            self.now, _, action, args = heapq.heappop(self._heap)
            try:
                action(*args)
            except Crashed:
                self._crash()
            self.watch.check()
            if self.now > self._most:
                require(False, f"the run is {self.store.state} at {self.now:.0f} s, it should have ended")
            if self.calm and not self._goes_on():
                over = over or self.now + 2 * self._deadline  # what comes late must change nothing
                if self.now >= over:
                    break
        else:
            require(False, "the world never becomes quiet")
        self.watch.at_the_end()
        return self.store

    def _goes_on(self) -> bool:
        return self.store.state == "running" or (self.store.state == "paused" and self._feasible)

    @property
    def _feasible(self) -> bool:
        """Whether devices that behave can finish the run."""
        policy = self.policy
        able = sum(policy.labels.items() <= row.labels.items() for row in self.store.devices.values())
        if policy.mode == "async":
            return policy.quorum <= 2 * min(able, policy.concurrency)
        return able >= policy.quorum

    def _after(self, delay: float, action: Callable[..., None], *args: object) -> None:
        heapq.heappush(self._heap, (self.now + delay, next(self._order), action, args))

    def _say(self, text: str) -> None:
        if self._said is not None:
            self._said.append(f"{self.now:8.2f}  {text}")

    # The server's life.

    def _start(self) -> None:
        """Start the server: nobody counts as online, and a run that was running goes on."""
        self._say("the server starts")
        self.up = True
        for row in self.store.devices.values():
            row.online = False
        for device in self.devices.values():
            self._presence(device)
        if self.store.state == "running":
            self._launch()

    def _launch(self) -> None:
        """Listen, and read the record a little later: what comes in between is both news and recorded."""
        self.life = Life()
        self._after(self.rng.choice((0.001, 0.1, 0.3 * self._deadline)), self._recover, self.life)

    def _crash(self) -> None:
        if self.up:
            self._say("the server crashes")
            self.up, self.life = False, None
            self._after(self.rng.uniform(0.01, 1.5) * self._deadline, self._start)

    def _start_over(self) -> None:
        """The run's thread fails and starts over in a server that lives on, as when its database is away for a moment."""
        if self.up and self.life is not None:
            self._say("the run starts over")
            self._launch()

    def _may_crash(self) -> None:
        if not self.calm and self.faults.crash and self.rng.random() < self.faults.crash:
            raise Crashed

    def _recover(self, life: Life) -> None:
        if self.life is not life:
            return
        record = self.store.record(self.seed, self._done())
        life.state, effects = self.engine.recover(record, self.clock)
        if self._said is not None:
            self._say(f"recovered from {record}")
            self._show(life, effects)
        self.watch.recovered(record, life.state, effects)
        life.effects.extend(effects)
        self._act(life)

    def _done(self) -> str:
        return "the goal is reached" if self.store.version >= self.faults.done_at else ""

    def _act(self, life: Life) -> None:
        """Perform one effect, or take in what happened when there is none left; then go on, or wait."""
        if self.life is not life or life.state is None:
            return
        life.waiting = False
        eagerly = self.faults.eager and life.news and self.rng.random() < 0.5
        if life.effects and not eagerly:
            effect = life.effects.popleft()
            self._may_crash()
            if isinstance(effect, events.End):
                self._end(life, effect)
                return
            self._perform(life, effect)
            self._may_crash()
        else:
            news, life.news = life.news, []
            for event in news:
                if event is not None:
                    self._step(life, event)
                    self._may_crash()
            if life.state.wants_devices:
                self._step(life, events.Candidates(self.clock, self.store.candidates()))
            else:
                self._step(life, events.Tick(self.clock))
                idle = not life.effects and not life.state.wants_devices
                require(not idle or life.state.wake > self.clock, "the engine would be woken at once, and again")
        if life.effects or life.news:
            dawdles = self.faults.dawdle and not self.calm and self.rng.random() < self.faults.dawdle
            self._after(self.rng.uniform(0, 0.1) * self._deadline if dawdles else 0.0, self._act, life)
        else:
            self._wait(life, life.state)

    def _wait(self, life: Life, state: State) -> None:
        life.waiting = True
        life.waits += 1
        patience = state.wake - self.clock
        if state.wants_devices:
            patience = min(patience, self._look)
        if patience < 1e9:  # the invariants say whether it may wait for ever
            self._after(max(0.0, patience), self._woken, life, life.waits)

    def _woken(self, life: Life, waits: int) -> None:
        if life.waiting and life.waits == waits:
            self._act(life)

    def _hear(self, event: events.Event | None) -> None:
        if self.life is not None:
            self.life.news.append(event)
            if self.life.waiting:
                self.life.waiting = False
                self._after(0.0, self._act, self.life)

    def _step(self, life: Life, event: events.Event) -> None:
        assert life.state is not None
        before = life.state
        life.state, effects = self.engine.step(before, event)
        if self._said is not None and (effects or not isinstance(event, events.Tick | events.Candidates)):
            self._say(f"event   {_shown(event)}")
            self._show(life, effects)
        self.watch.stepped(self.engine, before, event, life.state, effects)
        life.effects.extend(effects)

    def _show(self, life: Life, effects: tuple[events.Effect, ...]) -> None:
        assert life.state is not None
        works = ", ".join(f"{work.id[:4]} {work.device} {work.state}" for work in life.state.work.values())
        self._say(f"        {life.state.phase}, round {life.state.number}.{life.state.attempt}: {works}")
        for effect in effects:
            self._say(f"  wants {effect}")

    def _perform(self, life: Life, effect: events.Effect) -> None:
        """As rounds.loop and FleetPort do it."""
        if not isinstance(effect, events.Look):
            self._say(f"does    {effect}")
        match effect:
            case events.Look():
                self._step(life, events.Candidates(self.clock, self.store.candidates()))
            case events.Open(offers=offers) | events.Assign(offers=offers):
                opened = effect if isinstance(effect, events.Open) else None
                self.watch.offered(opened, offers)
                commands = self.store.offer(opened, offers, self.clock)
                self._may_crash()
                self._send(commands)
            case events.Fold(id=id, weight=weight):
                self._fold(life, id, weight)
            case events.Finish():
                commands = self.store.finish(effect, self.clock)
                self._may_crash()
                self._send(commands)
            case events.Abandon():
                life.sum.clear()
                self.watch.abandons(effect)
                self._abandoned_in_calm += self.calm
                self.store.abandon(effect, self.clock)
            case events.Commit():
                self._commit(life, effect)
            case events.Evaluate(number=number):
                require(number == self.store.version, f"checkpoint {number} is to be evaluated")

    def _fold(self, life: Life, id: str, weight: float) -> None:
        self.watch.folds(id, life.sum)
        if self.store.assignments[id].wrong:
            self._step(life, events.Refused(self.clock, id, "its shapes are wrong"))
            return
        life.sum[id] = weight
        self._may_crash()
        self._step(life, events.Folded(self.clock, id))

    def _commit(self, life: Life, commit: events.Commit) -> None:
        if not self.calm and self.rng.random() < self.faults.unable:
            self._step(life, events.Unable(self.clock, "the strategy is unable"))
            return
        self.watch.commits(commit, life.sum)
        self.store.commit(commit, self.clock)
        self._may_crash()
        life.sum.clear()
        self._step(life, events.Committed(self.clock, self._done()))

    def _end(self, life: Life, end: events.End) -> None:
        for effect in life.effects:
            if isinstance(effect, events.Finish):
                self._perform(life, effect)
                self._may_crash()
        self._say(f"ends    {end}")
        self.watch.ends(end.state, life.ordered)
        self.store.note(end.state)
        self.life = None

    # The network and the exchange.

    def _carry(self, action: Callable[..., None], *args: object) -> None:
        """Bring a message over: late, twice or not at all."""
        faults, random = self.faults, self.rng.random
        if self.calm:
            self._after(random() * 0.01, action, *args)
            return
        if random() >= faults.loss:
            late = random() < faults.late
            self._after(random() * (1.5 * self._deadline if late else 0.3), action, *args)
        if random() < faults.repeat:
            self._after(random() * self._deadline, action, *args)

    def _send(self, commands: list[CommandRow]) -> None:
        for command in commands:
            self._carry(self._to_device, command)

    def _to_device(self, command: CommandRow) -> None:
        if self._said is not None:
            what = "stop" if command.cancels else "train"
            self._say(f"{command.device} hears {command.id}: {what} {command.assignment[:4]}")
        self.devices[command.device].receive(command, self.clock + (0.0 if self.calm else self._skew))

    def _from_device(self, said: Said) -> None:
        self._carry(self._received, said)

    def _received(self, said: Said) -> None:
        if not self.up:
            return
        now = self.clock
        if said.answers:
            row = self.store.complete(said.command, said.device, said.answers, said.examples, said.wrong, now)
        else:
            row = self.store.acknowledge(said.command, said.device, said.state, now)
        if self._said is not None:
            self._say(
                f"{said.device} says {said.state} to {said.command}: {f'now {row.state}' if row else 'no change'}"
            )
        self._may_crash()
        self._tell(row)

    def _tell(self, row: AssignmentRow | None) -> None:
        if row is None:
            return
        if row.state == "accepted":
            self._hear(events.Accepted(self.clock, row.id))
        elif row.state == "uploaded":
            self._hear(events.Uploaded(self.clock, row.id, row.examples))
        else:
            self._hear(events.Ended(self.clock, row.id, f"{row.device} {row.state}"))

    def _presence(self, device: Device) -> None:
        """Tell the server of a device's coming or going, in the end rightly: the broker retains it."""
        self._after(self.rng.random() * 0.3, self._heard, device)

    def _heard(self, device: Device) -> None:
        if not self.up:
            return
        self.store.devices[device.name].online = device.online
        self._hear(None)
        if device.online:
            self._send(self.store.waiting(device.name, self.clock))

    def _sweep(self) -> None:
        self._after(self._deadline * 0.1, self._sweep)
        if self.up:
            moved = self.store.expire(self.clock)
            self._may_crash()
            for row in moved:
                self._tell(row)
            self._send(self.store.silent(*self._resend, self.clock))

    # What else happens.

    def _jump(self) -> None:
        """The server's clock is set, mostly forward."""
        if self.calm:
            return
        by = self.rng.choice((0.3, 1, 3, 100)) * self._deadline if self.rng.random() < 0.7 else -self.rng.random()
        self._say(f"the clock jumps by {by:.2f} s")
        self.offset += by
        if by < 0:
            self.watch.clock_went_back = True

    def _move_device(self) -> None:
        device = self.rng.choice(list(self.devices.values()))
        self._say(f"{device.name} {'leaves' if device.online else 'comes'}")
        if device.online:
            device.leave()
        else:
            device.come()

    def _administer(self) -> None:
        """Pause, resume or stop, as one can from the run's state; nobody answers while the server is down."""
        what = self.rng.choice(("pause", "pause", "pause", "stop"))
        if not self.up:
            return
        if self.store.state == "running" and self.life is not None:
            self._say(f"the administrator says {what}")
            self.life.ordered = True
            self._hear(events.Order(self.clock, what))
            if what == "pause":
                self._after(self.rng.uniform(0, 1) * self._deadline, self._resume)
        elif self.store.state == "paused" and what == "stop":
            self._say("the administrator stops the paused run")
            self.store.stop_paused(self.clock)
        else:
            self._resume()

    def _resume(self) -> None:
        if self.up and self.store.state == "paused":
            self._say("the administrator resumes the run")
            self.store.resume(self.clock)
            self.watch.resumed()
            self._launch()

    def _become_calm(self) -> None:
        """From now on nothing goes wrong: every device restarts and behaves, every message arrives."""
        self._say("the world becomes calm")
        self.calm = True
        for device in self.devices.values():
            device.behaves = True
            device.leave()
            self._after(self.rng.random(), device.come)
        self._look_after()

    def _look_after(self) -> None:
        """An administrator who readmits devices and resumes a run that can go on."""
        self._after(self._deadline, self._look_after)
        if not self.up:
            return
        for row in self.store.devices.values():
            row.quarantined, row.rejections = "", 0
        require(self._abandoned_in_calm <= 4 or not self._feasible, "attempts are abandoned though nothing goes wrong")
        if self._feasible:
            self._resume()


def _shown(event: events.Event) -> str:
    if not isinstance(event, events.Candidates):
        return str(event)
    there = " ".join(candidate.device for candidate in event.candidates if candidate.online)
    return f"Candidates(now={event.now}, online: {there})"
