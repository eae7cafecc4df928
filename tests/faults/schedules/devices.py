"""Devices that do what devices do, and all that they should not."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.schedules.store import CommandRow

HABITS = ("prompt", "slow", "mute", "declines", "fails", "vanishes", "silent", "wrong", "astray", "empty")


@dataclass(frozen=True)
class Said:
    """An acknowledgement with `state`, or a result ("done") of `examples` for the assignment that it `answers`."""

    command: str
    device: str
    state: str
    answers: str = ""
    examples: int = 0
    wrong: bool = False


@dataclass
class Device:
    """One device: its `inbox` survives it, the `jobs` at hand do not.

    `after` schedules, `say` publishes, `present` tells of coming and going; `sent` is the truth about its results.
    """

    name: str
    rng: random.Random
    deadline: float
    habits: tuple[str, ...]
    after: Callable[..., None]
    say: Callable[[Said], None]
    present: Callable[["Device"], None]
    online: bool = True
    behaves: bool = False
    inbox: dict[str, Said | None] = field(default_factory=dict)
    jobs: dict[str, CommandRow] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)

    def receive(self, command: CommandRow, clock: float) -> None:
        """Take a command in; a repeat is answered, not executed again."""
        if not self.online:
            return
        if command.id in self.inbox:
            if (said := self.inbox[command.id]) is not None:
                self.say(said)
            return
        self.inbox[command.id] = None
        if command.expires <= clock:
            self._answer(command, "expired")
        elif command.cancels:
            self._answer(command, "done")
            for job in list(self.jobs.values()):
                if job.assignment == command.assignment:
                    del self.jobs[job.id]
                    self._answer(job, "cancelled")
        else:
            self._begin(command)

    def _begin(self, command: CommandRow) -> None:
        habit = "prompt" if self.behaves else self.rng.choice(self.habits)
        if habit == "declines":
            self._answer(command, "declined")
            return
        if habit != "mute" and self.rng.random() < 0.95:
            self.say(Said(command.id, self.name, "accepted"))
        if habit == "vanishes":
            self.leave()
            self.after(self.rng.uniform(0.2, 3) * self.deadline, self.come)
        elif habit != "silent":
            self.jobs[command.id] = command
            most = 3.0 if habit == "slow" else 0.1
            self.after(self.rng.uniform(0.01, most) * self.deadline, self._end, command, habit)

    def _end(self, command: CommandRow, habit: str) -> None:
        if self.jobs.get(command.id) is not command:
            return
        del self.jobs[command.id]
        if habit == "fails":
            self._answer(command, "failed")
        elif habit == "empty":
            self._answer(command, "done")
        else:
            examples = self.rng.randrange(1, 50)
            answers = "another" if habit == "astray" else command.assignment
            self.sent[answers] = examples
            self._keep(Said(command.id, self.name, "done", answers, examples, habit == "wrong"))

    def _answer(self, command: CommandRow, state: str) -> None:
        self._keep(Said(command.id, self.name, state))

    def _keep(self, said: Said) -> None:
        self.inbox[said.command] = said
        if self.online:
            self.say(said)

    def leave(self) -> None:
        """Die: what it was doing is forgotten, what it has answered is not."""
        self.online = False
        self.jobs.clear()
        self.inbox = {id: said for id, said in self.inbox.items() if said is not None}
        self.present(self)

    def come(self) -> None:
        """Be there again."""
        if not self.online:
            self.online = True
            self.present(self)
