"""The train step of many devices at once, compiled by XLA for the machine that simulates them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from umbel.metrics import Sums
from umbel.task import Task
from umbel.tensors import Tensors
from umbel_server.compiler.keras_model import keras_parts
from umbel_server.compiler.reemit import Program, key
from umbel_server.compiler.step import trace
from umbel_server.compiler.training_file import slots


class DeviceBatch:
    """Trains `clients` devices at once, each exactly as a plan of `task` would.

    Batches, padding, seeds, slots and metrics are the same. TensorFlow computes the steps, so results differ from a plan's
    by rounding. Raises CompileError as the compiler does; exceptions of TensorFlow pass through when it cannot vectorise
    the step.
    """

    def __init__(self, task: Task, clients: int) -> None:
        self.clients = clients
        self._parts = parts = keras_parts(task, 0)
        self._traced = traced = trace(task, parts)
        changed = traced.train.assigned
        self.names = [weight.path for weight in parts.weights if key(weight) in changed]
        self._weights = [weight for weight in parts.weights if weight.path in self.names]
        self._fixed = {key(w): np.asarray(w.numpy()) for w in parts.weights if w.path not in self.names}
        self._fixed |= {key(w): np.asarray(w.numpy()) for w in parts.constants}
        self._slots = slots(parts)
        self._start = [np.asarray(slot.numpy()) for slot in self._slots]
        self._inputs, self._targets = sorted(task.input_specs), sorted(task.target_specs)
        self._states = traced.metrics.states()
        self._plain = tf.function(lambda *given: self._train(traced.train, *given), jit_compile=True, autograph=False)
        self._proximal = tf.function(
            lambda *given: self._train(traced.train_proximal, *given), jit_compile=True, autograph=False
        )

    def train(
        self,
        weights: Tensors,
        batches: Tensors,
        rows: NDArray[np.float32],
        steps: Sequence[int],
        seeds: NDArray[np.int32],
        learning_rate: float,
        proximal_mu: float,
    ) -> list[tuple[Tensors, Sums]]:
        """Train every client; returns for each its weights after training and the sums over its batches.

        `batches` are inputs and targets by name, [clients, steps, batch, ...]. `rows` are sample weights, float32[clients,
        steps, batch]. `steps` is the number of steps of each client, and `seeds` are int32[clients, steps].
        """
        run = self._proximal if proximal_mu else self._plain
        after, sums = run(
            [tf.constant(weights[name]) for name in self.names],
            [tf.constant(batches[name]) for name in (*self._inputs, *self._targets)],
            tf.constant(rows),
            tf.constant(np.asarray(steps, np.int32)),
            tf.constant(seeds),
            tf.constant(learning_rate, tf.float32),
            tf.constant(proximal_mu, tf.float32),
        )
        trained = [value.numpy() for value in after]
        totals = {name: value.numpy().astype(np.float64) for name, value in sums.items()}
        return [
            (
                dict(zip(self.names, (value[client] for value in trained), strict=True)),
                {name: value[client].tolist() for name, value in totals.items()},
            )
            for client in range(self.clients)
        ]

    def _train(
        self,
        program: Program,
        weights: list[Any],
        batches: list[Any],
        rows: Any,
        steps: Any,
        seeds: Any,
        learning_rate: Any,
        proximal_mu: Any,
    ) -> tuple[list[Any], dict[str, Any]]:
        count = self.clients

        def each(value: Any) -> Any:
            return tf.tile(value[tf.newaxis], [count] + [1] * len(value.shape))

        anchors = {
            key(anchor): weights[self._index(own)]
            for own, anchor in zip(self._parts.trained, self._traced.anchors, strict=True)
            if own.path in self.names
        }
        constants = {number: tf.constant(value) for number, value in self._fixed.items()}
        fixed = {**constants, **anchors, key(self._parts.optimizer._learning_rate): learning_rate}
        metrics = self._traced.metrics.variables()
        own_keys = [*(key(w) for w in self._weights), *(key(s) for s in self._slots), *(key(m) for m in metrics)]

        def one(given: Any) -> Any:
            state, batch, weight, seed, active = given
            values = {**fixed, **dict(zip(own_keys, state[2:], strict=True))}
            values = {number: value for number, value in values.items() if number in program.used}
            kept = {number: value for number, value in zip(own_keys, state[2:], strict=True)}
            arguments = [*batch, weight, seed]
            if program is self._traced.train_proximal:
                arguments.append(proximal_mu)
            (loss, total), after = program(arguments, values, lowered=False)
            new = [state[0] + loss, state[1] + total, *(after.get(number, kept[number]) for number in own_keys)]
            return [tf.where(active, own, before) for own, before in zip(new, state, strict=True)]

        def body(step: Any, state: list[Any]) -> Any:
            batch = [value[:, step] for value in batches]
            return step + 1, tf.vectorized_map(one, (state, batch, rows[:, step], seeds[:, step], step < steps))

        start = [tf.zeros(()), tf.zeros(()), *weights, *map(tf.constant, self._start)]
        start += [tf.zeros(m.shape, m.dtype) for m in metrics]
        _, state = tf.while_loop(
            lambda step, _: step < tf.reduce_max(steps), body, (tf.constant(0), [each(v) for v in start])
        )
        by_key = dict(zip(own_keys, state[2:], strict=True))
        sums = {"loss": state[0], "weight": state[1]}
        sums |= {name: by_key[key(variable)] for name, variable in self._states.items()}
        return state[2 : 2 + len(weights)], sums

    def _index(self, weight: Any) -> int:
        return self.names.index(weight.path)
