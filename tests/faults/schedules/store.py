"""What the database holds of one run, in memory; each method is one transaction of FleetPort, Runs or the exchange."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from umbel_server.rounds.assignments import LIVE, WITH_DEVICE, may_follow
from umbel_server.rounds.engine import OpenRound, Record
from umbel_server.rounds.events import Abandon, Commit, Finish, Offer, Open
from umbel_server.rounds.open_assignments import OpenAssignment
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.rounds.selection import Candidate

OPEN = ("pending", "accepted")


@dataclass
class DeviceRow:
    id: str
    labels: dict[str, str]
    examples: int
    online: bool = False
    assigned: float = 0.0
    rejections: int = 0
    quarantined: str = ""


@dataclass
class CommandRow:
    """To train for `assignment`, or (`cancels`) to stop doing so."""

    id: str
    device: str
    assignment: str
    cancels: bool
    expires: float
    updated: float
    state: str = "pending"


@dataclass
class AssignmentRow:
    id: str
    device: str
    command: str
    base: int
    closes: float
    updated: float
    state: str = "offered"
    examples: int = 0
    wrong: bool = False
    weight: float = 0.0
    folded_into: int | None = None


@dataclass
class RoundRow:
    number: int
    attempt: int
    opened: float
    closes: float
    wanted: int
    state: str = "open"
    closed: float = 0.0


@dataclass
class Store:
    """`moved` collects the assignments that a transaction moved on, for whoever watches."""

    policy: RoundPolicy
    rounds: int
    devices: dict[str, DeviceRow]
    state: str = "running"
    resumed: float = 0.0
    attempts: dict[tuple[int, int], RoundRow] = field(default_factory=dict)
    assignments: dict[str, AssignmentRow] = field(default_factory=dict)
    commands: dict[str, CommandRow] = field(default_factory=dict)
    checkpoints: list[tuple[tuple[str, float], ...]] = field(default_factory=lambda: [()])
    moved: list[AssignmentRow] = field(default_factory=list)

    @property
    def version(self) -> int:
        return len(self.checkpoints) - 1

    def candidates(self) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(row.id, row.online, row.labels, row.examples, (), row.quarantined, row.assigned)
            for row in self.devices.values()
        )

    def record(self, seed: int, done: str) -> Record:
        """As DurableRecord.read."""
        attempts = [row for (number, _), row in sorted(self.attempts.items()) if number == self.version + 1]
        opened = [row for row in attempts if row.state == "open"]
        live = [row for row in self.assignments.values() if row.state in LIVE]
        live.sort(key=lambda row: (row.updated, row.id))
        last = opened[-1] if opened else None
        return Record(
            run="run",
            seed=seed,
            policy=self.policy,
            rounds=self.rounds,
            version=self.version,
            open=_open_round(last, self.resumed) if last else None,
            work=tuple(_work(row) for row in live),
            failures=sum(row.state == "abandoned" and row.closed > self.resumed for row in attempts),
            attempts=attempts[-1].attempt + 1 if attempts else 0,
            made=len(self.assignments),
            done=done,
        )

    def offer(self, opened: Open | None, offers: tuple[Offer, ...], now: float) -> list[CommandRow]:
        if opened is not None:
            key = opened.number, opened.attempt
            before = self.attempts.get(key)
            again = before is not None and before.state == "open" and before.opened <= self.resumed
            assert before is None or again, f"attempt {key} is there already"
            self.attempts[key] = RoundRow(*key, opened.opened, opened.closes, opened.wanted)
        commands = []
        for offer in offers:
            assert offer.id not in self.assignments, f"assignment {offer.id} is there already"
            command = self._command(offer.device, offer.id, False, max(now, offer.closes), now)
            row = AssignmentRow(offer.id, offer.device, command.id, offer.base, offer.closes, now)
            self.assignments[offer.id] = row
            self.moved.append(row)
            self.devices[offer.device].assigned = now
            commands.append(command)
        return commands

    def _command(self, device: str, assignment: str, cancels: bool, expires: float, now: float) -> CommandRow:
        command = CommandRow(f"c{len(self.commands)}", device, assignment, cancels, expires, now)
        self.commands[command.id] = command
        return command

    def finish(self, finish: Finish, now: float) -> list[CommandRow]:
        row = self.assignments[finish.id]
        command = self.commands[row.command]
        at_work = row.state in WITH_DEVICE
        if not self._move(row, finish.state, now):
            return []
        if command.state in OPEN:
            command.state, command.updated = finish.state, now
        if finish.state == "rejected":
            device = self.devices[row.device]
            device.rejections += 1
            if self.policy.max_rejections and device.rejections >= self.policy.max_rejections:
                device.quarantined = finish.reason
        if not (at_work and finish.tell):
            return []
        return [self._command(row.device, row.id, True, max(now + 5.0, row.closes), now)]

    def abandon(self, abandon: Abandon, now: float) -> None:
        key = abandon.number, abandon.attempt
        row = self.attempts.setdefault(key, RoundRow(*key, now, now, 0))
        row.state, row.closed = "abandoned", now

    def commit(self, commit: Commit, now: float) -> None:
        for id, weight in commit.contributors:
            row = self.assignments[id]
            assert self._move(row, "folded", now), f"assignment {id} is {row.state}, it cannot be folded"
            row.weight, row.folded_into = weight, commit.number
        self.checkpoints.append(commit.contributors)
        if (opened := self.attempts.get((commit.number, commit.attempt))) is not None:
            opened.state, opened.closed = "committed", now

    def note(self, state: str) -> None:
        self.state = state

    def resume(self, now: float) -> None:
        self.state, self.resumed = "running", now

    def stop_paused(self, now: float) -> None:
        """As Runs.stop of a paused run."""
        for row in self.assignments.values():
            if row.state in LIVE:
                self._move(row, "cancelled", now)
        self.state = "stopped"

    def acknowledge(self, id: str, device: str, state: str, now: float) -> AssignmentRow | None:
        """As Exchange._acknowledged; returns the assignment if this moved it on."""
        command = self.commands[id]
        if command.device != device or command.state not in OPEN:
            return None
        command.state, command.updated = state, now
        if state == "done" or command.cancels:
            return None
        row = self.assignments[command.assignment]
        return row if self._move(row, state, now) else None

    def complete(
        self, id: str, device: str, answers: str, examples: int, wrong: bool, now: float
    ) -> AssignmentRow | None:
        """As Exchange._completed and _take; returns the assignment if this moved it on."""
        command = self.commands[id]
        if command.device != device or command.state not in OPEN:
            return None
        command.state, command.updated = "done", now
        row = self.assignments[command.assignment]
        if answers != row.id:
            return row if self._move(row, "rejected", now) else None
        if not self._move(row, "uploaded", now):
            return None
        row.examples, row.wrong = examples, wrong
        return row

    def expire(self, now: float) -> list[AssignmentRow]:
        moved = []
        for command in self.commands.values():
            if command.state in OPEN and command.expires <= now:
                command.state, command.updated = "expired", now
                row = self.assignments[command.assignment]
                if not command.cancels and self._move(row, "expired", now):
                    moved.append(row)
        return moved

    def waiting(self, device: str, now: float) -> list[CommandRow]:
        return self._sent_again((row for row in self.commands.values() if row.device == device), now)

    def silent(self, pending: float, accepted: float, now: float) -> list[CommandRow]:
        patience = {"pending": pending, "accepted": accepted}
        rows = (row for row in self.commands.values() if row.state in OPEN and row.updated < now - patience[row.state])
        return self._sent_again(rows, now)

    def _sent_again(self, commands: Iterable[CommandRow], now: float) -> list[CommandRow]:
        found = [row for row in commands if row.state in OPEN and row.expires > now]
        for row in found:
            row.updated = now
        return found

    def _move(self, row: AssignmentRow, state: str, now: float) -> bool:
        if not may_follow(row.state, state):
            return False
        row.state, row.updated = state, now
        self.moved.append(row)
        return True


def _open_round(row: RoundRow, resumed: float) -> OpenRound:
    return OpenRound(row.number, row.attempt, row.opened, row.closes, row.wanted, row.opened <= resumed)


def _work(row: AssignmentRow) -> OpenAssignment:
    match row.state:
        case "uploaded":
            return OpenAssignment(row.id, row.device, row.base, row.closes, "arrived", row.examples)
        case "accepted":
            return OpenAssignment(row.id, row.device, row.base, row.closes, "accepted")
        case _:
            return OpenAssignment(row.id, row.device, row.base, row.closes)
