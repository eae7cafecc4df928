"""Training and evaluating a plan on the device's examples."""

import logging
import time
from collections.abc import Callable

import msgspec

from umbel import __version__, tensors
from umbel.atomic import write_atomically
from umbel.conditions import Rules, Violation
from umbel.errors import UmbelError
from umbel.examples import Examples
from umbel.litert import runtime_name
from umbel.messages import Blob, Evaluate, Evaluated, Train, Trained
from umbel.plan import Plan
from umbel.tensors import digest
from umbel.updates import Pipeline, Training, difference
from umbel_edge.commands.handlers.context import HandlerContext
from umbel_edge.connection.resumable_downloads import IN_MEMORY
from umbel_edge.training.saved_progress import SavedProgress
from umbel_edge.training.trainer import Cancelled

log = logging.getLogger("umbel.agent")


def train(context: HandlerContext, command: str, body: Train) -> Trained:
    """Train, unless an earlier process did, and upload the update."""
    trained = context.pending_updates.kept(command) or _train_anew(context, command, body)
    unmetered = Rules(unmetered=body.requires.unmetered or context.config.conditions.unmetered)

    def ready() -> str:
        return "; ".join(violation.phrase for violation in context.conditions.violations(unmetered))

    context.pending_updates.send(command, trained, lambda: _check_wanted(context, body), ready)
    return trained


def evaluate(context: HandlerContext, command: str, body: Evaluate) -> Evaluated:
    """Evaluate the weights."""
    plan, examples, weights = _prepare(context, body)
    started = time.monotonic()
    metrics = context.trainer.evaluate(plan, weights, examples, _check_before_batch(context, body))
    return Evaluated(body.assignment, examples.count, metrics, round(time.monotonic() - started, 6))


def may_train(context: HandlerContext, command: str, body: Train) -> tuple[Violation, ...]:
    """The rules that do not hold now; none when the update is ready and only has to be sent."""
    return (
        ()
        if context.pending_updates.kept(command) is not None
        else context.conditions.violations(_rules(context, body))
    )


def may_evaluate(context: HandlerContext, command: str, body: Evaluate) -> tuple[Violation, ...]:
    """The rules that do not hold now."""
    return context.conditions.violations(_rules(context, body))


def clean_after_training(context: HandlerContext, command: str) -> None:
    """Remove the update and the saved progress of a training that was answered."""
    context.pending_updates.drop(command)
    context.progress_path.unlink(missing_ok=True)


def _train_anew(context: HandlerContext, command: str, body: Train) -> Trained:
    log.info("training assignment %s: round %d of run %s", body.assignment, body.round, body.run)
    plan, examples, weights = _prepare(context, body)
    identity = digest(msgspec.json.encode([body, context.examples.version(), runtime_name(), __version__]))
    progress = SavedProgress(context.progress_path, identity, context.config.progress_seconds)
    outcome = context.trainer.train(plan, weights, examples, body, _check_before_batch(context, body), progress)
    tensors.check(outcome.weights, plan.manifest.weights, "the weights after training")
    seconds = round(progress.seconds, 6)
    write_atomically(context.personal_weights(plan), tensors.dump(outcome.weights))
    training = Training(weights, examples.count, f"{body.seed}/{context.config.device}")
    update = Pipeline(plan.manifest.weights).encode(difference(outcome.weights, weights), training)
    trained = Trained(body.assignment, Blob.of(update), examples.count, outcome.metrics, seconds)
    context.pending_updates.keep(command, trained, update)
    return trained


def _prepare(context: HandlerContext, body: Train | Evaluate) -> tuple[Plan, Examples, tensors.Tensors]:
    def check() -> None:
        _check_wanted(context, body)

    plan = context.plans.open(body.plan, check)
    examples = context.examples.load(plan)
    return plan, examples, tensors.load(_fetch_weights(context, body.weights, check))


def _fetch_weights(context: HandlerContext, blob: Blob, check: Callable[[], None]) -> bytes:
    """Weights that pass through a file stay there until other weights come: after a restart, or for the evaluation of the
    weights that the next round trains, they are not fetched again."""
    if blob.size <= IN_MEMORY:
        return context.downloads.fetch(blob, context.download_folder, check)
    path = context.download_folder / f"{blob.sha256}.weights"
    for other in context.download_folder.glob("*.weights"):
        if other != path:
            other.unlink()
    return context.downloads.fetch_file(blob, path, check).read_bytes()


def _rules(context: HandlerContext, body: Train | Evaluate) -> Rules:
    """The rules of the device and of the run."""
    return context.config.conditions.merge(body.requires)


def _check_before_batch(context: HandlerContext, body: Train | Evaluate) -> Callable[[], None]:
    rules = _rules(context, body)

    def check() -> None:
        _check_wanted(context, body)
        if broken := context.conditions.violations(rules):
            raise UmbelError("; ".join(f"{violation.condition}: {violation.found}" for violation in broken))

    return check


def _check_wanted(context: HandlerContext, body: Train | Evaluate) -> None:
    if reason := context.why_stop(body.assignment):
        raise Cancelled(reason)
    if context.now() > body.deadline:
        raise UmbelError("the deadline passed while the device was working")
