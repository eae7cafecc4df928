"""The agent's own trainer: one LiteRT interpreter a worker."""

from umbel.plan import Plan
from umbel.updates import Pipeline, difference
from umbel_edge.training.litert_trainer import LiteRTTrainer
from umbel_sim.engines import Done, Job, done
from umbel_sim.engines.threads import ThreadsEngine
from umbel_sim.fleet_data import Fleet, examples_of


class LiteRTDevice:
    """One interpreter that is one device after another. See umbel_sim.engines.threads.Device."""

    def __init__(self, plan: Plan, fleet: Fleet) -> None:
        self._plan, self._fleet = plan, fleet
        self._specs = {**plan.manifest.inputs, **plan.manifest.targets}
        self._value_counts = plan.manifest.value_counts
        self._trainer, self._pipeline = LiteRTTrainer(""), Pipeline(plan.manifest.weights)

    def train(self, job: Job) -> Done:
        """As Device."""
        self._trainer.device = job.name
        examples = examples_of(self._fleet, job.device, self._specs, self._value_counts)
        outcome = self._trainer.train(self._plan, job.weights, examples, job.how, _go_on)
        delta = difference(outcome.weights, job.weights)
        return done(self._pipeline, job, delta, outcome.metrics, examples.count)


def litert_engine(plan: Plan, fleet: Fleet, workers: int) -> ThreadsEngine:
    """Interpreters in `workers` threads."""
    return ThreadsEngine("litert", workers, lambda: LiteRTDevice(plan, fleet))


def _go_on() -> None:
    """Virtual devices are stopped in virtual time, before their training is computed."""
