"""Training with Keras on a device that has TensorFlow: the task file must be installed there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from umbel.errors import TaskError
from umbel.examples import Examples
from umbel.keras_import import import_keras
from umbel.messages import Train
from umbel.plan import Plan
from umbel.task import Task, load_task
from umbel.tensors import Tensors, check
from umbel_edge.trainers import Outcome, shuffles


class KerasTrainer:
    """See umbel_edge.trainers.Trainer. Imports TensorFlow when it is made."""

    def __init__(self, device: str, task: Path) -> None:
        import_keras()
        self._device = device
        self._task: Task = load_task(task)
        self._model, self._step, self._optimizer = self._build()

    def train(
        self, plan: Plan, weights: Tensors, examples: Examples, how: Train, check_stop: Callable[[], None]
    ) -> Outcome:
        """A Keras loop over a tf.data pipeline: from_tensor_slices, shuffle, batch, map, prefetch."""
        import keras
        import tensorflow as tf

        self._set(plan, weights)
        for variable in self._optimizer.variables:
            variable.assign(tf.zeros_like(variable))
        self._optimizer.learning_rate = how.learning_rate
        anchors = [tf.constant(v.numpy()) for v in self._model.trainable_variables]
        seed = shuffles(how.seed, self._device).randrange(2**31)
        data = self._data(examples, shuffle_seed=seed)
        loss = keras.metrics.Mean()
        self._model.reset_metrics()
        steps = 0
        for _ in range(how.epochs):
            for x, y in data:
                check_stop()
                value = self._step(x, y, tf.constant(how.proximal_mu, tf.float32), anchors)
                loss.update_state(value, sample_weight=len(y))
                steps += 1
                if steps == how.max_steps:
                    break
            if steps == how.max_steps:
                break
        return Outcome(self._get(), self._metrics(plan, float(loss.result())))

    def evaluate(
        self, plan: Plan, weights: Tensors, examples: Examples, check_stop: Callable[[], None]
    ) -> dict[str, float]:
        """Every example once, in order."""
        import keras

        self._set(plan, weights)
        loss = keras.metrics.Mean()
        self._model.reset_metrics()
        for x, y in self._data(examples, shuffle_seed=None):
            check_stop()
            outputs = self._model(x, training=False)
            loss.update_state(self._model.compute_loss(x, y, outputs, training=False), sample_weight=len(y))
            self._model.compute_metrics(x, y, outputs)
        return self._metrics(plan, float(loss.result()))

    def _build(self) -> tuple[Any, Any, Any]:
        import keras
        import tensorflow as tf

        task = self._task
        keras.backend.clear_session()
        model = task.model()
        optimizer = keras.optimizers.get(task.optimizer) if isinstance(task.optimizer, str) else task.optimizer()
        loss = task.loss if isinstance(task.loss, str) else task.loss()
        model.compile(optimizer=optimizer, loss=loss, metrics=list(task.metrics))
        optimizer.build(model.trainable_variables)

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator,unused-ignore]
        def step(x: Any, y: Any, proximal_mu: Any, anchors: Any) -> Any:
            with tf.GradientTape() as tape:
                outputs = model(x, training=True)
                value = model.compute_loss(x, y, outputs)
                # FedProx adds mu / 2 * ||w - anchor||^2 to the loss (arXiv 1812.06127, eq. 2).
                distance = tf.add_n(
                    [tf.reduce_sum(tf.square(v - a)) for v, a in zip(model.trainable_variables, anchors, strict=True)]
                )
                objective = value + 0.5 * proximal_mu * distance
            slopes = tape.gradient(objective, model.trainable_variables)
            optimizer.apply(slopes, model.trainable_variables)
            model.compute_metrics(x, y, outputs)
            return value

        return model, step, optimizer

    def _data(self, examples: Examples, shuffle_seed: int | None) -> Any:
        import tensorflow as tf

        (x_name,), (y_name,) = self._task.input_specs, self._task.target_specs
        data = tf.data.Dataset.from_tensor_slices((examples.tensors[x_name], examples.tensors[y_name]))
        if shuffle_seed is not None:
            data = data.shuffle(examples.count, seed=shuffle_seed, reshuffle_each_iteration=True)
        dtype = self._task.input_specs[x_name].dtype
        return (
            data.batch(self._task.batch_size)
            .map(lambda x, y: (tf.cast(x, dtype), y), num_parallel_calls=tf.data.AUTOTUNE)
            .prefetch(tf.data.AUTOTUNE)
        )

    def _set(self, plan: Plan, weights: Tensors) -> None:
        if plan.manifest.task != self._task.name:
            raise TaskError(f"the plan is of task {plan.manifest.task}, the task file here is {self._task.name}")
        check(weights, plan.manifest.weights, "the weights to start from")
        ours = {w.path: tuple(w.shape) for w in self._model.weights}
        theirs = {spec.name: spec.shape for spec in plan.manifest.weights}
        if ours != theirs:
            raise TaskError(
                f"task {self._task.name}: the task file here has other weights than the plan; install the new one"
            )
        for variable in self._model.weights:
            variable.assign(weights[variable.path])

    def _get(self) -> Tensors:
        return {w.path: np.array(w.numpy()) for w in self._model.weights}

    def _metrics(self, plan: Plan, loss: float) -> dict[str, float]:
        results = self._model.get_metrics_result()
        named = zip(self._task.metrics, plan.manifest.metrics, strict=True)
        return {"loss": loss, **{ours: float(results[keras_name]) for keras_name, ours in named}}
