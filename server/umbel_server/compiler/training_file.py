"""`train.tflite`: the traced step with its weights as resource variables, behind design.md's signatures."""

import tempfile
from typing import Any

import tensorflow as tf

from umbel.task import Task
from umbel_server.compiler import CompileError
from umbel_server.compiler.keras_model import KerasParts
from umbel_server.compiler.reemit import reemit
from umbel_server.compiler.step import Traced


class _Module(tf.Module):  # type: ignore[misc]
    """Weights, FedProx's anchor (the weights as they were set), and momentum, as variables."""

    def __init__(self, task: Task, parts: KerasParts, traced: Traced) -> None:
        super().__init__()
        self._task, self._parts, self._traced = task, parts, traced
        self._trainable = [i for i, w in enumerate(parts.weights) if w.trainable]
        shapes = [tuple(w.shape) for w in parts.weights]
        self.weights = [tf.Variable(tf.zeros(s), name=f"w{i}") for i, s in enumerate(shapes)]
        self.anchors = [tf.Variable(tf.zeros(shapes[i]), name=f"a{i}") for i in self._trainable]
        self.momenta = (
            [tf.Variable(tf.zeros(shapes[i]), name=f"m{i}") for i in self._trainable]
            if parts.optimizer.momentum
            else []
        )

    def signatures(self) -> dict[str, Any]:
        """The signatures as concrete functions."""
        task = self._task
        ((input_name, x),) = task.input_specs.items()
        ((target_name, y),) = task.target_specs.items()
        rows = task.batch_size
        scalar = tf.float32
        inputs = {input_name: tf.TensorSpec((rows, *x.shape), x.dtype, input_name)}
        batch = {
            **inputs,
            target_name: tf.TensorSpec((rows, *y.shape), y.dtype, target_name),
            "sample_weight": tf.TensorSpec((rows,), tf.float32, "sample_weight"),
        }
        step = {
            **batch,
            "learning_rate": tf.TensorSpec((), scalar, "learning_rate"),
            "proximal_mu": tf.TensorSpec((), scalar, "proximal_mu"),
        }
        weights = {f"w{i}": tf.TensorSpec(v.shape, tf.float32, f"w{i}") for i, v in enumerate(self.weights)}

        def train(**given: Any) -> dict[str, Any]:
            return self._train([given[name] for name in batch], given["learning_rate"], given["proximal_mu"])

        def evaluate(**given: Any) -> dict[str, Any]:
            return self._report(reemit(self._traced.sums, [*self._read(), *(given[name] for name in batch)]))

        def infer(**given: Any) -> dict[str, Any]:
            (outputs,) = reemit(self._traced.outputs, [*self._read(), given[input_name]])
            return {next(iter(self._parts.outputs)): outputs}

        return {
            "train": _concrete(train, step),
            "evaluate": _concrete(evaluate, batch),
            "infer": _concrete(infer, inputs),
            "set_weights": _concrete(self._set, weights),
            "get_weights": _concrete(self._get, {}),
            "reset": _concrete(self._reset, {}),
        }

    def _read(self) -> list[Any]:
        return [v.read_value() for v in self.weights]

    def _report(self, sums: list[Any]) -> dict[str, Any]:
        names = ["loss", "weight", *self._parts.metrics]
        return dict(zip(names, sums[: len(names)], strict=True))

    def _train(self, batch: list[Any], learning_rate: Any, proximal_mu: Any) -> dict[str, Any]:
        values = self._read()
        results = reemit(self._traced.gradients, [*values, *batch])
        report = self._report(results)
        sgd = self._parts.optimizer
        for slot, (index, slope) in enumerate(zip(self._trainable, results[len(report) :], strict=True)):
            # FedProx adds mu / 2 * ||w - anchor||^2 to the loss (arXiv 1812.06127, eq. 2).
            slope = slope + proximal_mu * (values[index] - self.anchors[slot].read_value())
            move = -learning_rate * slope
            if self.momenta:
                move = sgd.momentum * self.momenta[slot].read_value() + move
                self.momenta[slot].assign(move)
                if sgd.nesterov:
                    move = sgd.momentum * move - learning_rate * slope
            self.weights[index].assign(values[index] + move)
        return report

    def _set(self, **given: Any) -> dict[str, Any]:
        for i, variable in enumerate(self.weights):
            variable.assign(given[f"w{i}"])
        for slot, index in enumerate(self._trainable):
            self.anchors[slot].assign(given[f"w{index}"])
        return {"done": tf.constant(1)}

    def _get(self) -> dict[str, Any]:
        return {f"w{i}": v.read_value() for i, v in enumerate(self.weights)}

    def _reset(self) -> dict[str, Any]:
        for variable in self.momenta:
            variable.assign(tf.zeros(variable.shape))
        return {"done": tf.constant(1)}


def _concrete(function: Any, specs: dict[str, Any]) -> Any:
    return tf.function(function).get_concrete_function(**specs)


def training_file(task: Task, parts: KerasParts, traced: Traced) -> bytes:
    """The bytes of `train.tflite`, made of built-in ops alone; raises CompileError when the converter refuses."""
    module = _Module(task, parts, traced)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=module.signatures())
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.experimental_enable_resource_variables = True
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        return convert(converter, task.name)


def convert(converter: Any, name: str) -> bytes:
    """Run a converter; raises CompileError with the first line of its complaint."""
    try:
        return bytes(converter.convert())
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CompileError(f"task {name}: LiteRT's converter refused the train step ({first[:300]})") from error
