"""Executing commands, one at a time, in their order."""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from umbel import __version__, tensors
from umbel.atomic import remove_interrupted, write_atomically
from umbel.conditions import Rules, Violation
from umbel.errors import UmbelError
from umbel.examples import Examples, load_examples
from umbel.litert import runtime_name
from umbel.messages import (
    Answered,
    Blob,
    Cancel,
    Command,
    Evaluate,
    Evaluated,
    Export,
    Exported,
    Infer,
    Install,
    Outcome,
    Rekey,
    Report,
    Reported,
    Standing,
    Train,
    Trained,
)
from umbel.placement import place
from umbel.plan import PLACED, Plan
from umbel.tensors import digest
from umbel_edge.commands.outgoing import Outgoing
from umbel_edge.config import AgentConfig
from umbel_edge.connection.http import IN_MEMORY, ServerHttp
from umbel_edge.connection.resumable_uploads import Uploads
from umbel_edge.connection.server_keys import ServerKeys
from umbel_edge.device.installed_models import Models
from umbel_edge.device.readings import Conditions
from umbel_edge.device.state import KEPT_SECONDS, AgentState
from umbel_edge.training.saved_progress import Progress
from umbel_edge.training.trainers import Cancelled, Trainer

log = logging.getLogger("umbel.agent")

HEAVY = ("tensorflow", "flwr")
PLANS_KEPT = 3


@dataclass(frozen=True)
class Workshop:
    """What a device works with."""

    config: AgentConfig
    state: AgentState
    http: ServerHttp
    uploads: Uploads
    keys: ServerKeys
    outgoing: Outgoing
    trainer: Trainer
    models: Models
    conditions: Conditions
    count_examples: Callable[[], int]


class Worker:
    """Executes one command at a time; `stopped` says why the work at hand should end, or nothing."""

    def __init__(
        self, workshop: Workshop, stopped: Callable[[str], str], clock: Callable[[], float] = time.time
    ) -> None:
        self._shop, self._stopped, self._clock = workshop, stopped, clock
        self._plan: Plan | None = None
        self._examples: tuple[tuple[str, int, int], Examples] | None = None

    def do(self, command: Command) -> Outcome | None:
        """Execute a command; returns its outcome, None for one that has none. Raises UmbelError with the reason."""
        match command.body:
            case Train() as body:
                return self._train(command.id, body)
            case Evaluate() as body:
                return self._evaluate(body)
            case Install() as body:
                model = self._shop.http.fetch(body.model, self._shop.state.folder / "downloads")
                self._shop.models.install(body, model, self._shop.keys.known)
                return None
            case Infer() as body:
                inputs = tensors.load(self._shop.http.fetch(body.inputs, self._shop.state.folder / "downloads"))
                installed, outputs = self._shop.models.infer(inputs)
                return Answered(installed.release, self._shop.uploads.send(command.id, tensors.dump(outputs)))
            case Export() as body:
                return self._export(command.id, body)
            case Report():
                return self._report()
            case Cancel() | Standing() | Rekey():
                return None  # answered at once by the agent; here only when it had waited in the queue

    def broken(self, body: Train | Evaluate) -> tuple[Violation, ...]:
        """The rules of the device and of the run that do not hold now."""
        return self._shop.conditions.violations(self._shop.config.conditions.merge(body.requires))

    def is_trained(self, command: str) -> bool:
        """Whether the command's update is ready and only to be sent."""
        return self._shop.outgoing.kept(command) is not None

    def clean(self, command: str) -> None:
        """Remove what an answered training leaves behind."""
        self._shop.outgoing.drop(command)
        self._progress_path.unlink(missing_ok=True)

    def clean_others(self, commands: set[str]) -> None:
        """Remove what earlier processes left behind, but for `commands`, which are still to be done."""
        folder = self._shop.state.folder
        remove_interrupted(folder)
        self._shop.outgoing.drop_others(commands)
        if not commands:
            self._progress_path.unlink(missing_ok=True)
        oldest = self._clock() - KEPT_SECONDS
        for part in (*folder.glob("downloads/*.part"), *folder.glob("plans/*.part")):
            if part.stat().st_mtime < oldest:
                part.unlink()

    def _train(self, command: str, body: Train) -> Trained:
        trained = self._shop.outgoing.kept(command) or self._train_anew(command, body)
        unmetered = Rules(unmetered=body.requires.unmetered or self._shop.config.conditions.unmetered)

        def ready() -> str:
            return "; ".join(violation.phrase for violation in self._shop.conditions.violations(unmetered))

        self._shop.outgoing.send(command, trained, lambda: self._check_wanted(body), ready)
        return trained

    def _train_anew(self, command: str, body: Train) -> Trained:
        log.info("training assignment %s: round %d of run %s", body.assignment, body.round, body.run)
        plan, examples, weights = self._prepare(body)
        identity = digest(msgspec.json.encode([body, self._examples_version(), runtime_name(), __version__]))
        progress = Progress(self._progress_path, identity, self._shop.config.progress_seconds)
        outcome = self._shop.trainer.train(plan, weights, examples, body, self._check(body), progress)
        tensors.check(outcome.weights, plan.manifest.weights, "the weights after training")
        seconds = round(progress.seconds, 6)
        write_atomically(self._personal(plan), tensors.dump(outcome.weights))
        update = tensors.dump({name: outcome.weights[name] - weight for name, weight in weights.items()})
        trained = Trained(body.assignment, Blob.of(update), examples.count, outcome.metrics, seconds)
        self._shop.outgoing.keep(command, trained, update)
        return trained

    def _evaluate(self, body: Evaluate) -> Evaluated:
        plan, examples, weights = self._prepare(body)
        started = time.monotonic()
        metrics = self._shop.trainer.evaluate(plan, weights, examples, self._check(body))
        return Evaluated(body.assignment, examples.count, metrics, round(time.monotonic() - started, 6))

    def _prepare(self, body: Train | Evaluate) -> tuple[Plan, Examples, tensors.Tensors]:
        def check() -> None:
            self._check_wanted(body)

        plan = self._open(body.plan, check)
        examples = self._load_examples(plan)
        return plan, examples, tensors.load(self._fetch_weights(body.weights, check))

    def _fetch_weights(self, blob: Blob, check: Callable[[], None]) -> bytes:
        """Weights that are on flash on their way stay there until others come: after a restart, or for the evaluation of
        what the next round trains, they are not fetched again."""
        folder = self._shop.state.folder / "downloads"
        if blob.size <= IN_MEMORY:
            return self._shop.http.fetch(blob, folder, check)
        path = folder / f"{blob.sha256}.weights"
        for other in folder.glob("*.weights"):
            if other != path:
                other.unlink()
        return self._shop.http.fetch_file(blob, path, check).read_bytes()

    def _check(self, body: Train | Evaluate) -> Callable[[], None]:
        rules = self._shop.config.conditions.merge(body.requires)

        def check() -> None:
            self._check_wanted(body)
            if broken := self._shop.conditions.violations(rules):
                raise UmbelError("; ".join(f"{violation.condition}: {violation.found}" for violation in broken))

        return check

    def _check_wanted(self, body: Train | Evaluate) -> None:
        if reason := self._stopped(body.assignment):
            raise Cancelled(reason)
        if self._clock() > body.deadline:
            raise UmbelError("the deadline passed while the device was working")

    def _open(self, blob: Blob, check: Callable[[], None] | None = None) -> Plan:
        if self._plan is not None and self._plan.sha256 == blob.sha256:
            return self._plan
        folder = self._shop.state.folder / "plans"
        path = self._shop.http.fetch_file(blob, folder / f"{blob.sha256}.plan", check)
        try:
            plan = Plan.open(path)
            plan.verify(self._shop.keys.known)
        except UmbelError:
            path.unlink(missing_ok=True)
            raise
        newest = sorted(folder.glob("*.plan"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in newest[PLANS_KEPT:]:
            old.unlink()
        self._plan = plan
        return plan

    def _load_examples(self, plan: Plan) -> Examples:
        key = plan.sha256, *self._examples_version()
        if self._examples is None or self._examples[0] != key:
            self._examples = None  # let go of the old ones before the new ones take memory
            self._examples = key, load_examples(self._shop.config.examples, plan.manifest)
        return self._examples[1]

    def _examples_version(self) -> tuple[int, int]:
        path = self._shop.config.examples
        found = path.stat() if path.exists() else None
        return (found.st_mtime_ns, found.st_size) if found is not None else (0, 0)

    def _export(self, command: str, body: Export) -> Exported:
        plan = self._open(body.plan)
        personal = self._personal(plan)
        if not personal.is_file():
            raise UmbelError("this device has not trained the plan yet, so it has no personalised weights to export")
        weights = tensors.load(personal.read_bytes())
        tensors.check(weights, plan.manifest.weights, "the personalised weights")
        name = PLACED[body.variant]
        model = place(plan.read(name), weights, plan.manifest.weight_maps[name])
        file = f"{plan.manifest.task}.{body.variant}.tflite"
        write_atomically(self._shop.state.folder / "exports" / file, model)
        return Exported(self._shop.uploads.send(command, model), self.rounds, body.variant)

    def _personal(self, plan: Plan) -> Path:
        return self._shop.state.folder / "personal" / f"{plan.sha256[:16]}.safetensors"

    @property
    def _progress_path(self) -> Path:
        return self._shop.state.folder / "progress.npz"

    @property
    def rounds(self) -> int:
        """Assignments this device has finished training."""
        return int(self._shop.state.fact("rounds", "0"))

    def _report(self) -> Reported:
        installed = self._shop.models.installed
        return Reported(
            kind=self._shop.config.kind,
            trainer=self._shop.config.trainer,
            runtime=runtime_name(),
            agent=__version__,
            examples=self._shop.count_examples(),
            rounds=self.rounds,
            rss_mb=rss_mb(),
            imports=[name for name in HEAVY if name in sys.modules],
            installed=installed.release if installed is not None else "",
            variant=installed.variant if installed is not None else "",
        )


def rss_mb() -> float:
    """Resident memory of this process in MB (10^6 bytes)."""
    return float(psutil.Process().memory_info().rss) / 1e6
