"""One case: a fleet, a run, one fault at one moment, and what was found wrong afterwards."""

import random
import shlex
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import invariants
from tests.faults.fleet import DEVICES, POPULATION, Fleet
from tests.faults.injections import FAULTS, Fault
from tests.faults.moments import Moments, When
from umbel.plan import Plan

ROUNDS = 3
DEADLINE = 8.0
QUORUM = 8
MAX_NORM = 1e3
"""What honest updates are far below, and an update of 10^6 times their norm is far above."""
RUN_SECONDS = 100.0
OPTIONS: dict[str, dict[str, float]] = {
    "fedavg": {},
    # A tau this large keeps Adam from magnifying the rounding of float32, so that the comparison can be strict.
    "fedadam": {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.1},
}
POLICIES: dict[str, dict[str, Any]] = {
    "everybody": {"fraction": 1.0},
    "over-selected": {"target": 12},
    "late-folded": {"target": 12, "late": "fold"},
}
"""A round of `everybody` loses no update; the others let go of those that come after what they wanted."""
BROKERS = ("embedded", "mosquitto")


@dataclass(frozen=True)
class Case:
    """What happens; the same case draws the same moment and the same details of its fault."""

    fault: str
    moment: str
    broker: str
    strategy: str
    seed: int
    policy: str = ""
    """One of POLICIES; drawn when it is empty."""

    def __str__(self) -> str:
        return f"{self.fault} at {self.moment}, {self.broker}, {self.strategy}, seed {self.seed}"

    @property
    def command(self) -> str:
        """What runs this case again."""
        words = ["python", "-m", "tests.faults.matrix", "--seed", str(self.seed), "--fault", self.fault]
        words += ["--moment", self.moment, "--broker", self.broker, "--strategy", self.strategy]
        return shlex.join(words)


@dataclass
class Outcome:
    """What came of a case: sentences for what was wrong, the seconds of the run and of everything, where it was kept."""

    case: Case
    wrong: list[str] = field(default_factory=list)
    run_seconds: float = 0.0
    seconds: float = 0.0
    folder: Path | None = None
    tracebacks: int = 0


@dataclass(frozen=True)
class Plans:
    """The plan whose updates travel in messages, and the one whose updates are uploaded."""

    inline: Path
    uploaded: Path

    def choose(self, moment: str, rng: random.Random) -> Path:
        """The plan of a case: only the second has uploads to be in the middle of."""
        return self.uploaded if moment == "uploading" or rng.random() < 0.4 else self.inline


def execute(case: Case, plans: Plans, keep: Path, keep_all: bool = False) -> Outcome:
    """Run a case; what it left is moved under `keep` when something was wrong or all is kept, else removed."""
    outcome, started = Outcome(case), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="umbel-faults-"))
    before = set(threading.enumerate())
    rng = random.Random(str(case))
    plan = Plan.open(plans.choose(case.moment, rng))
    fault = FAULTS[case.fault](rng)
    moments = Moments(folder / "moments", When.draw(case.moment, ROUNDS, DEVICES, rng))
    fleet = Fleet(folder, case.broker, moments.path)
    try:
        with _ended(fleet, fault, moments, outcome):
            fault.prepare(fleet)
            fleet.start()
            fault.join(fleet, plan)
            _run(case, rng, fleet, fault, moments, plan, outcome)
    except Exception as error:
        outcome.wrong.append(f"{type(error).__name__}: {error}")
    except BaseException:
        shutil.rmtree(folder)
        raise
    outcome.wrong += [f"thread {thread.name} is left" for thread in set(threading.enumerate()) - before]
    outcome.wrong += [f"port {port} is still in use" for port in (fleet.http_port, fleet.broker_port) if _listens(port)]
    if outcome.wrong or keep_all:
        outcome.folder = keep / f"{case.fault}-{case.moment}-{case.broker}-{case.strategy}-{case.seed}"
        shutil.rmtree(outcome.folder, ignore_errors=True)
        shutil.move(folder, outcome.folder)
    else:
        shutil.rmtree(folder)
    outcome.seconds = time.monotonic() - started
    return outcome


def _run(
    case: Case, rng: random.Random, fleet: Fleet, fault: Fault, moments: Moments, plan: Plan, outcome: Outcome
) -> None:
    invariants.record_transitions(fleet.database)
    options, name = OPTIONS[case.strategy], case.policy or rng.choice(list(POLICIES))
    policy = {"quorum": QUORUM, "deadline": DEADLINE, "backoff": 0.2, "max_norm": MAX_NORM, **POLICIES[name]}
    started = time.monotonic()
    run = _start(fleet, plan, case, options, policy)
    deadline = started + RUN_SECONDS
    while not moments.reached.wait(0.05) and _is_running(fleet, run) and time.monotonic() < deadline:
        continue
    if not moments.reached.is_set():
        outcome.wrong.append(f"the run never came to {moments.when}")
    else:
        fault.strike(fleet)
        moments.release()
        fault.mend(fleet)
    while _is_running(fleet, run) and time.monotonic() < deadline:
        time.sleep(0.05)
    outcome.run_seconds = time.monotonic() - started
    expected = invariants.Expected(
        ROUNDS, case.strategy, options, plan.initial_weights(), fault.behaviour, keeps_all=name == "everybody"
    )
    outcome.wrong += invariants.broken(fleet, run, expected)
    outcome.wrong += invariants.everybody_answers(fleet)


def _start(fleet: Fleet, plan: Plan, case: Case, options: dict[str, float], policy: dict[str, Any]) -> str:
    added = fleet.client.add_plan(plan.path)
    settings: dict[str, Any] = {
        "strategy": case.strategy,
        "options": options,
        "rounds": ROUNDS,
        "seed": case.seed,
        "policy": policy,
    }
    started = fleet.client.post("/v1/runs", {"population": POPULATION, "plan": added.plan, "settings": settings})
    return str(started["id"])


def _is_running(fleet: Fleet, run: str) -> bool:
    (row,) = fleet.rows("SELECT state FROM runs WHERE id = ?", run)
    return bool(row["state"] == "running")


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _ended(fleet: Fleet, fault: Fault, moments: Moments, outcome: Outcome) -> Iterator[None]:
    """Leave nothing running, however the block ends."""
    try:
        yield
    finally:
        moments.release()
        fault.leave()
        outcome.wrong += fleet.programs.stop()
        outcome.wrong += fleet.programs.left_over()
        moments.stop()
        log = fleet.programs.log("server")
        outcome.tracebacks = log.read_text().count("Traceback") if log.exists() else 0
        fault.end()
