"""The task's metrics as sums: Keras's own metric objects, whose states are traced with the train step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.trainers.compile_utils import get_metric

from umbel.errors import TaskError
from umbel.keras_calls import made_metrics
from umbel.metrics import Kind, MetricSpec
from umbel.task import Task
from umbel_server.compiler.errors import CompileError
from umbel_server.compiler.keras_model import KerasParts, first_line

_COUNTS = "object_name_uids"


class TaskMetrics:
    """The Keras metrics of all outputs, by the names under which Keras reports them."""

    def __init__(self, task: Task, parts: KerasParts) -> None:
        self._parts = parts
        self._metrics: dict[str, tuple[str, Any]] = {}
        self._kinds: dict[str, Kind] = {}
        self._masked: set[str] = set()
        for output, made in keras_metrics(task, parts).items():
            for identifier in made:
                metric = _metric(task, parts, output, identifier)
                name = metric.name if len(parts.outputs) == 1 else f"{output}_{metric.name}"
                if name in self._metrics or name in ("loss", "weight"):
                    raise TaskError(f"task {task.name}: metric {name!r} is given twice, or its name is taken")
                self._metrics[name] = output, metric
                self._kinds[name] = _kind(task, name, metric)

    def update(self, targets: Mapping[str, Any], outputs: Mapping[str, Any], weight: Any) -> None:
        """Add a batch to the metrics' states; rows of weight 0 are left out."""
        for output, metric in self._metrics.values():
            target, predicted = targets[self._parts.targets[output]], outputs[output]
            if len(target.shape) == len(predicted.shape) == 1:
                target, predicted = target[:, tf.newaxis], predicted[:, tf.newaxis]  # as for losses, see step.py
            mask = keras.src.backend.get_keras_mask(predicted)
            rows = weight
            if mask is not None:
                self._masked.add(output)
                rows = tf.reshape(weight, [-1] + [1] * (len(mask.shape) - 1)) * tf.ones(mask.shape)
            metric.update_state(target, predicted, sample_weight=rows)

    @property
    def specs(self) -> tuple[MetricSpec, ...]:
        """The metrics as the manifest lists them; complete only after a step has been traced."""
        found = []
        for name, (output, metric) in self._metrics.items():
            kind = self._kinds[name]
            if kind == "mean" and output in self._masked:
                kind = "ratio"  # masked time steps do not count, so the sum of weights is not the count
            variables = metric.variables[:1] if kind == "mean" else metric.variables
            found.append(MetricSpec(name, kind, {v.name: tuple(int(n) for n in v.shape) for v in variables}))
        return tuple(found)

    def states(self) -> dict[str, Any]:
        """The variables that hold the sums, by key."""
        found: dict[str, Any] = {}
        for spec, (_, metric) in zip(self.specs, self._metrics.values(), strict=True):
            found |= dict(zip(spec.keys, metric.variables, strict=False))
        return found

    def variables(self) -> list[Any]:
        """Every variable of the metrics."""
        return [variable for _, metric in self._metrics.values() for variable in metric.variables]


def keras_metrics(task: Task, parts: KerasParts) -> dict[str, list[Any]]:
    """New metrics by output, as `Model.compile` takes them. The same task always gives the same names.

    Raises TaskError.
    """
    wanted: Mapping[str, Any] = {}
    if isinstance(task.metrics, Mapping):
        wanted = task.metrics
        if unknown := sorted(set(wanted) - set(parts.targets)):
            raise TaskError(
                f"task {task.name}: metrics are given for output {unknown[0]!r}; outputs with a loss are "
                f"{', '.join(parts.targets)}"
            )
    elif task.metrics and len(parts.targets) > 1:
        raise TaskError(
            f"task {task.name}: the model has several outputs: give metrics by output, for example "
            f"metrics={{{next(iter(parts.targets))!r}: {task.metrics!r}}}"
        )
    elif task.metrics:
        wanted = {next(iter(parts.targets)): task.metrics}
    with _names_from_the_start():
        try:
            made = made_metrics(task)
        except Exception as error:
            raise TaskError(f"task {task.name}: a metric cannot be made: {first_line(error)}") from error
    if isinstance(made, list):
        return {output: made for output in wanted}
    return {output: made[output] for output in parts.outputs if output in wanted}


@contextmanager
def _names_from_the_start() -> Iterator[None]:
    """In this block Keras numbers the names that it gives (`precision`, `precision_1`) from the start."""
    counted = global_state.get_global_attribute(_COUNTS)
    global_state.set_global_attribute(_COUNTS, None)
    try:
        yield
    finally:
        global_state.set_global_attribute(_COUNTS, counted)


def _metric(task: Task, parts: KerasParts, output: str, identifier: Any) -> Any:
    target = task.target_specs[parts.targets[output]]
    y = keras.KerasTensor((task.batch_size, *target.shape), dtype=target.dtype)
    predicted = keras.KerasTensor((task.batch_size, *parts.outputs[output].shape))
    try:
        return get_metric(identifier, y, predicted)
    except Exception as error:
        raise TaskError(f"task {task.name}: metric {identifier!r} cannot be made: {first_line(error)}") from error


def _kind(task: Task, name: str, metric: Any) -> Kind:
    kinds = keras.metrics
    if isinstance(metric, kinds.RootMeanSquaredError):
        return "root_mean"
    if isinstance(metric, kinds.MeanMetricWrapper):
        return "mean"
    if isinstance(metric, kinds.Precision | kinds.Recall) and len(metric.thresholds) > 1:
        raise CompileError(
            f"task {task.name}: metric {name!r} ({type(metric).__name__}) has {len(metric.thresholds)} thresholds; give one "
            "metric for each, with a name of its own"
        )
    if isinstance(metric, kinds.Precision):
        return "precision"
    if isinstance(metric, kinds.Recall):
        return "recall"
    if type(metric) is kinds.AUC and not metric.multi_label:
        # For evenly spread thresholds Keras sorts examples into buckets; devices compare with every threshold.
        metric._thresholds_distributed_evenly = False
        if (metric.curve.value, metric.summation_method.value) == ("ROC", "interpolation"):
            return "auc_roc"
        if (metric.curve.value, metric.summation_method.value) == ("PR", "interpolation"):
            return "auc_pr"
    raise CompileError(
        f"task {task.name}: metric {name!r} ({type(metric).__name__}) cannot be merged over devices; use accuracies, mean "
        "errors, RootMeanSquaredError, Precision, Recall, or AUC with interpolation"
    )
