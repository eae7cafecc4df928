"""Executing commands, one at a time, in their order."""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from joserfc.jwk import ECKey

from umbel import __version__, tensors
from umbel.atomic import write_atomically
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
    Report,
    Reported,
    Train,
    Trained,
)
from umbel.placement import place
from umbel.plan import PLACED, Plan
from umbel_edge.config import AgentConfig
from umbel_edge.http import ServerHttp
from umbel_edge.models import Models
from umbel_edge.state import AgentState
from umbel_edge.trainers import Cancelled, Trainer
from umbel_edge.uploads import Uploads

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
    server: ECKey
    trainer: Trainer
    models: Models


class Worker:
    """Executes one command at a time; `stopped` says why the work at hand should end, or nothing."""

    def __init__(
        self, workshop: Workshop, stopped: Callable[[str], str], clock: Callable[[], float] = time.time
    ) -> None:
        self._shop, self._stopped, self._clock = workshop, stopped, clock
        self._plan: Plan | None = None
        self._examples: tuple[tuple[str, int], Examples] | None = None

    @property
    def examples(self) -> int:
        """How many examples the last plan found here; 0 before the first."""
        return int(self._shop.state.fact("examples", "0"))

    def do(self, command: Command) -> Outcome | None:
        """Execute a command; returns its outcome, None for one that has none. Raises UmbelError with the reason."""
        match command.body:
            case Train() as body:
                return self._train(body)
            case Evaluate() as body:
                return self._evaluate(body)
            case Install() as body:
                model = self._shop.http.fetch(body.model, self._shop.state.folder / "downloads")
                self._shop.models.install(body, model, self._shop.server)
                return None
            case Infer() as body:
                inputs = tensors.load(self._shop.http.fetch(body.inputs, self._shop.state.folder / "downloads"))
                installed, outputs = self._shop.models.infer(inputs)
                return Answered(installed.release, self._shop.uploads.send(tensors.dump(outputs)))
            case Export() as body:
                return self._export(body)
            case Report():
                return self._report()
            case Cancel():
                return None  # answered at once by the agent; here only when it had waited in the queue

    def _train(self, body: Train) -> Trained:
        plan, examples, weights = self._prepare(body)
        started = time.monotonic()
        outcome = self._shop.trainer.train(plan, weights, examples, body, self._check(body))
        seconds = time.monotonic() - started
        tensors.check(outcome.weights, plan.manifest.weights, "the weights after training")
        update = {name: outcome.weights[name] - weight for name, weight in weights.items()}
        blob = self._shop.uploads.send(tensors.dump(update))
        write_atomically(self._personal(plan), tensors.dump(outcome.weights))
        return Trained(body.assignment, blob, examples.count, outcome.metrics, round(seconds, 6))

    def _evaluate(self, body: Evaluate) -> Evaluated:
        plan, examples, weights = self._prepare(body)
        started = time.monotonic()
        metrics = self._shop.trainer.evaluate(plan, weights, examples, self._check(body))
        return Evaluated(body.assignment, examples.count, metrics, round(time.monotonic() - started, 6))

    def _prepare(self, body: Train | Evaluate) -> tuple[Plan, Examples, tensors.Tensors]:
        plan = self._open(body.plan)
        examples = self._load_examples(plan)
        weights = tensors.load(self._shop.http.fetch(body.weights, self._shop.state.folder / "downloads"))
        return plan, examples, weights

    def _check(self, body: Train | Evaluate) -> Callable[[], None]:
        def check() -> None:
            if reason := self._stopped(body.assignment):
                raise Cancelled(reason)
            if self._clock() > body.deadline:
                raise UmbelError("the deadline passed while the device was working")

        return check

    def _open(self, blob: Blob) -> Plan:
        if self._plan is not None and self._plan.sha256 == blob.sha256:
            return self._plan
        folder = self._shop.state.folder / "plans"
        path = self._shop.http.fetch_file(blob, folder / f"{blob.sha256}.plan")
        try:
            plan = Plan.open(path)
            plan.verify(self._shop.server)
        except UmbelError:
            path.unlink(missing_ok=True)
            raise
        newest = sorted(folder.glob("*.plan"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in newest[PLANS_KEPT:]:
            old.unlink()
        self._plan = plan
        return plan

    def _load_examples(self, plan: Plan) -> Examples:
        path = self._shop.config.examples
        key = plan.sha256, path.stat().st_mtime_ns if path.exists() else 0
        if self._examples is None or self._examples[0] != key:
            self._examples = key, load_examples(path, plan.manifest)
            self._shop.state.remember("examples", str(self._examples[1].count))
        return self._examples[1]

    def _export(self, body: Export) -> Exported:
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
        return Exported(self._shop.uploads.send(model), self.rounds, body.variant)

    def _personal(self, plan: Plan) -> Path:
        return self._shop.state.folder / "personal" / f"{plan.sha256[:16]}.safetensors"

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
            examples=self.examples,
            rounds=self.rounds,
            rss_mb=rss_mb(),
            imports=[name for name in HEAVY if name in sys.modules],
            installed=installed.release if installed is not None else "",
            variant=installed.variant if installed is not None else "",
        )


def rss_mb() -> float:
    """Resident memory of this process in MB (10^6 bytes)."""
    return float(psutil.Process().memory_info().rss) / 1e6
