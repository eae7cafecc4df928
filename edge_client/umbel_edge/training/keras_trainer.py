"""Training with Keras on a device with TensorFlow, where the task file must be installed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from umbel.errors import TaskError
from umbel.examples import Examples
from umbel.keras_calls import (
    made_losses,
    made_metrics,
    made_optimizer,
    model_arguments,
    named_outputs,
    targets_of,
)
from umbel.keras_import import import_keras
from umbel.messages import Train
from umbel.metrics import Sums, add, per_example
from umbel.plan import Plan
from umbel.task import Task, load_task
from umbel.tensors import Tensors, check
from umbel_edge.training.example_order import shuffles
from umbel_edge.training.saved_progress import SavedProgress
from umbel_edge.training.trainer import TrainingOutcome


class KerasTrainer:
    """See umbel_edge.training.trainer.Trainer. Imports TensorFlow when it is made."""

    def __init__(self, device: str, task: Path) -> None:
        import_keras()
        self._device = device
        self._task: Task = load_task(task)
        self._model, self._step, self._optimizer = self._build()

    def train(
        self,
        plan: Plan,
        weights: Tensors,
        examples: Examples,
        how: Train,
        check_stop: Callable[[], None],
        progress: SavedProgress | None = None,
    ) -> TrainingOutcome:
        """A Keras loop over a tf.data pipeline: from_tensor_slices, shuffle, batch, map, prefetch.

        It never continues from saved progress, because the position in a tf.data shuffle cannot be saved.
        """
        import tensorflow as tf

        self._set(plan, weights)
        for variable, start in zip(self._optimizer.variables, self._start, strict=True):
            variable.assign(start)
        self._optimizer.learning_rate = how.learning_rate
        anchors = [tf.constant(v.numpy()) for v in self._model.trainable_variables]
        data = self._data(examples, shuffle_seed=shuffles(how.seed, self._device).randrange(2**31))
        totals: Sums = {}
        steps = 0
        for _ in range(how.epochs):
            for x, y in data:
                check_stop()
                self._model.reset_metrics()
                loss = self._step(x, y, tf.constant(how.proximal_mu, tf.float32), anchors)
                totals = add(totals, self._sums(plan, float(loss), _rows(x)))
                steps += 1
                if steps == how.max_steps:
                    return TrainingOutcome(self._get(plan), per_example(totals))
        return TrainingOutcome(self._get(plan), per_example(totals))

    def evaluate(self, plan: Plan, weights: Tensors, examples: Examples, check_stop: Callable[[], None]) -> Sums:
        """Every example once, in order."""
        self._set(plan, weights)
        totals: Sums = {}
        for x, y in self._data(examples, shuffle_seed=None):
            check_stop()
            self._model.reset_metrics()
            outputs = self._model(self._arguments(x), training=False)
            targets = self._targets(y)
            loss = self._model.compute_loss(x, targets, outputs, training=False)
            self._model.compute_metrics(x, targets, outputs)
            totals = add(totals, self._sums(plan, float(loss), _rows(x)))
        return per_example(totals)

    def _build(self) -> tuple[Any, Any, Any]:
        import keras
        import tensorflow as tf

        task = self._task
        keras.backend.clear_session()
        model, optimizer = task.model(), made_optimizer(task)
        blank = {name: np.zeros((1, *spec.shape), spec.dtype) for name, spec in task.input_specs.items()}
        outputs = named_outputs(model, model(model_arguments(model, blank), training=False))
        self._target_names = targets_of(task, list(outputs))
        model.compile(
            optimizer=optimizer,
            loss=made_losses(task),
            loss_weights=_loss_weights(task, self._target_names),
            metrics=made_metrics(task),
        )
        optimizer.build(model.trainable_variables)
        self._start = [np.array(v.numpy()) for v in optimizer.variables]

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator,unused-ignore]
        def step(x: Any, y: Any, proximal_mu: Any, anchors: Any) -> Any:
            with tf.GradientTape() as tape:
                outputs = model(model_arguments(model, x), training=True)
                targets = self._targets(y)
                value = model.compute_loss(x, targets, outputs)
                # FedProx adds mu / 2 * ||w - anchor||^2 to the loss (arXiv 1812.06127, eq. 2).
                distance = tf.add_n(
                    [tf.reduce_sum(tf.square(v - a)) for v, a in zip(model.trainable_variables, anchors, strict=True)]
                )
                objective = value + 0.5 * proximal_mu * distance
            slopes = tape.gradient(objective, model.trainable_variables)
            optimizer.apply(slopes, model.trainable_variables)
            model.compute_metrics(x, targets, outputs)
            return value

        return model, step, optimizer

    def _data(self, examples: Examples, shuffle_seed: int | None) -> Any:
        import tensorflow as tf

        inputs = {name: examples.tensors[name] for name in self._task.input_specs}
        targets = {name: examples.tensors[name] for name in self._task.target_specs}
        data = tf.data.Dataset.from_tensor_slices((inputs, targets))
        if shuffle_seed is not None:
            data = data.shuffle(examples.count, seed=shuffle_seed, reshuffle_each_iteration=True)

        def cast(x: Any, y: Any) -> Any:
            return {name: tf.cast(x[name], spec.dtype) for name, spec in self._task.input_specs.items()}, y

        return (
            data.batch(self._task.batch_size).map(cast, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
        )

    def _arguments(self, x: Any) -> Any:
        return model_arguments(self._model, x)

    def _targets(self, y: Any) -> Any:
        named = {output: y[target] for output, target in self._target_names.items()}
        return named if len(named) > 1 else next(iter(named.values()))

    def _set(self, plan: Plan, weights: Tensors) -> None:
        if plan.manifest.task != self._task.name:
            raise TaskError(f"the plan is of task {plan.manifest.task}, the task file here is {self._task.name}")
        check(weights, plan.manifest.weights, "the weights to start from")
        ours = {w.path: tuple(w.shape) for w in self._model.weights}
        frozen = plan.frozen_weights()
        theirs = {spec.name: spec.shape for spec in plan.manifest.weights} | {n: w.shape for n, w in frozen.items()}
        if ours != theirs:
            raise TaskError(
                f"task {self._task.name}: the task file here has other weights than the plan; install the new one"
            )
        for variable in self._model.weights:
            variable.assign(frozen[variable.path] if variable.path in frozen else weights[variable.path])

    def _get(self, plan: Plan) -> Tensors:
        values = {w.path: w for w in self._model.weights}
        return {spec.name: np.array(values[spec.name].numpy()) for spec in plan.manifest.weights}

    def _sums(self, plan: Plan, loss: float, rows: int) -> Sums:
        """The sums of one batch, from the states of Keras's metrics."""
        sums: Sums = {"loss": loss * rows, "weight": float(rows)}
        compiled = [m for m in self._model.metrics if m.name != "loss"]
        metrics = [m for group in compiled for m in getattr(group, "metrics", [group])]
        for spec, metric in zip(plan.manifest.metrics, metrics[-len(plan.manifest.metrics) :], strict=True):
            states = [np.asarray(v.numpy(), np.float64).tolist() for v in metric.variables]
            sums |= dict(zip(spec.keys, states, strict=False))
        return sums


def _rows(x: Any) -> int:
    return int(next(iter(x.values())).shape[0])


def _loss_weights(task: Task, targets: dict[str, str]) -> dict[str, float] | None:
    return {name: (task.loss_weights or {}).get(name, 1.0) for name in targets} if len(targets) > 1 else None
