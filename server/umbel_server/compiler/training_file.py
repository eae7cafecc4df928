"""`train.tflite`: the traced programs as signatures of one TFLite file, whose state is in resource variables."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from umbel.task import Task
from umbel_server.compiler.converter import convert
from umbel_server.compiler.errors import CompileError
from umbel_server.compiler.keras_model import KerasParts
from umbel_server.compiler.reemit import Program, key
from umbel_server.compiler.step import Traced


class _Device:
    """The variables of the file: weights, optimizer slots, and FedProx's anchor, which is a copy of the weights as set."""

    def __init__(self, task: Task, parts: KerasParts, traced: Traced) -> None:
        self._task, self._parts, self._traced = task, parts, traced
        self._learning_rate = key(parts.optimizer._learning_rate)
        self._start = {key(v): np.asarray(v.numpy()) for v in slots(parts)}
        kinds = {"w": parts.weights, "s": slots(parts), "a": traced.anchors}
        self._keys = {name: [key(v) for v in variables] for name, variables in kinds.items()}
        self.held = {
            name: [tf.Variable(tf.zeros(v.shape, v.dtype), name=f"{name}{i}") for i, v in enumerate(variables)]
            for name, variables in kinds.items()
        }
        self._constants = {key(w): np.asarray(w.numpy()) for w in parts.constants}
        self._by_key = {
            k: variable for name, keys in self._keys.items() for k, variable in zip(keys, self.held[name], strict=True)
        }

    def signatures(self) -> dict[str, Any]:
        """The signatures as concrete functions."""
        task = self._task
        rows = task.batch_size

        def batched(specs: Any) -> dict[str, Any]:
            return {name: tf.TensorSpec((rows, *spec.shape), spec.dtype, name) for name, spec in specs.items()}

        inputs, targets = batched(task.input_specs), batched(task.target_specs)
        batch = {**inputs, **targets, "sample_weight": tf.TensorSpec((rows,), tf.float32, "sample_weight")}
        step = {
            **batch,
            "learning_rate": tf.TensorSpec((), tf.float32, "learning_rate"),
            "seed": tf.TensorSpec((), tf.int32, "seed"),
        }
        proximal_mu = {"proximal_mu": tf.TensorSpec((), tf.float32, "proximal_mu")}

        def flat(given: dict[str, Any]) -> list[Any]:
            # The flat inputs of a trace are the values of each mapping, in the order of their sorted names.
            return [given[n] for part in (inputs, targets) for n in sorted(part)] + [given["sample_weight"]]

        def train(**given: Any) -> dict[str, Any]:
            return self._report(self._traced.train, [*flat(given), given["seed"]], given["learning_rate"])

        def train_proximal(**given: Any) -> dict[str, Any]:
            arguments = [*flat(given), given["seed"], given["proximal_mu"]]
            return self._report(self._traced.train_proximal, arguments, given["learning_rate"])

        def evaluate(**given: Any) -> dict[str, Any]:
            return self._report(self._traced.evaluate, flat(given), tf.constant(0.0))

        def infer(**given: Any) -> dict[str, Any]:
            values = self._read(self._traced.infer, tf.constant(0.0))
            outputs, _ = self._traced.infer([given[n] for n in sorted(inputs)], values)
            return dict(zip(self._parts.outputs, outputs, strict=True))

        def score(program: Program, given: dict[str, Any]) -> dict[str, Any]:
            answers = {name: given[f"o{i}"] for i, name in enumerate(self._parts.outputs)}
            arguments = [answers[n] for n in sorted(answers)] + [given[n] for n in sorted(targets)]
            return self._report(program, [*arguments, given["sample_weight"]], tf.constant(0.0))

        def slots_by_name(values: list[Any]) -> dict[str, Any]:
            return {f"s{i}": value for i, value in enumerate(values)} or {"none": tf.constant(1)}

        signatures = {
            "train": _concrete(train, step),
            "train_proximal": _concrete(train_proximal, {**step, **proximal_mu}),
            "evaluate": _concrete(evaluate, batch),
            "infer": _concrete(infer, inputs),
            "set_weights": _concrete(self._set_weights, self._specs("w")),
            "get_weights": _concrete(self._get_weights, {}),
            "reset": _concrete(self._reset, {}),
        }
        if (program := self._traced.score) is not None:
            answers = {f"o{i}": spec for i, spec in enumerate(self._parts.outputs.values())}
            specs = {**batched(answers), **targets, "sample_weight": batch["sample_weight"]}
            signatures["score"] = _concrete(lambda **given: score(program, given), specs)
        if self.held["s"]:
            signatures["set_slots"] = _concrete(self._set_slots, self._specs("s"))
            signatures["get_slots"] = _concrete(lambda: slots_by_name([v.read_value() for v in self.held["s"]]), {})
        return signatures

    def _specs(self, name: str) -> dict[str, Any]:
        return {f"{name}{i}": tf.TensorSpec(v.shape, v.dtype, f"{name}{i}") for i, v in enumerate(self.held[name])}

    def _read(self, program: Program, learning_rate: Any) -> dict[int, Any]:
        values: dict[int, Any] = {self._learning_rate: learning_rate}
        for variable in self._traced.metrics.variables():
            values[key(variable)] = tf.zeros(variable.shape, variable.dtype)
        used = program.used
        values |= {k: tf.constant(value) for k, value in self._constants.items() if k in used}
        return values | {k: variable.read_value() for k, variable in self._by_key.items() if k in used}

    def _report(self, program: Program, arguments: list[Any], learning_rate: Any) -> dict[str, Any]:
        before = self._read(program, learning_rate)
        (loss, weight), after = program(arguments, before)
        for k, variable in self._by_key.items():
            if k in before and after[k] is not before[k]:
                variable.assign(after[k])
        states = {name: after[key(v)] for name, v in self._traced.metrics.states().items()}
        return {"loss": loss, "weight": weight, **states}

    def _set_weights(self, **given: Any) -> dict[str, Any]:
        by_key = dict(zip(self._keys["w"], (given[f"w{i}"] for i in range(len(given))), strict=True))
        for k, value in by_key.items():
            self._by_key[k].assign(value)
        for anchor, trained in zip(self.held["a"], self._parts.trained, strict=True):
            anchor.assign(by_key[key(trained)])
        return {"done": tf.constant(1)}

    def _get_weights(self) -> dict[str, Any]:
        return {f"w{i}": v.read_value() for i, v in enumerate(self.held["w"])}

    def _set_slots(self, **given: Any) -> dict[str, Any]:
        for i, variable in enumerate(self.held["s"]):
            variable.assign(given[f"s{i}"])
        return {"done": tf.constant(1)}

    def _reset(self) -> dict[str, Any]:
        for k, variable in zip(self._keys["s"], self.held["s"], strict=True):
            start = self._start[k]
            first = start.reshape(-1)[0]
            if not np.all(start == first):
                raise CompileError(
                    f"task {self._task.name}: the optimizer's {variable.name} starts from more than one value, which "
                    "'reset' cannot restore; use another optimizer"
                )
            variable.assign(tf.fill(variable.shape, tf.constant(first)))
        return {"done": tf.constant(1)}


def slots(parts: KerasParts) -> list[Any]:
    """The optimizer's variables without its learning rate, which is an input of the signatures."""
    return [v for v in parts.optimizer.variables if v is not parts.optimizer._learning_rate]


def _concrete(function: Any, specs: dict[str, Any]) -> Any:
    """A signature's function; it takes scalars as shape (1,), because LiteRT's resize of a scalar fails on aarch64."""
    scalars = {name for name, spec in specs.items() if spec.shape.rank == 0}
    declared = {
        name: tf.TensorSpec((1,), spec.dtype, name) if name in scalars else spec for name, spec in specs.items()
    }

    def with_scalars(**given: Any) -> Any:
        values = {name: tf.reshape(value, ()) if name in scalars else value for name, value in given.items()}
        return function(**values)

    return tf.function(with_scalars, autograph=False).get_concrete_function(**declared)


def training_file(task: Task, parts: KerasParts, traced: Traced) -> bytes:
    """The bytes of `train.tflite`, made of built-in ops only; raises CompileError when the converter refuses the model."""
    device, module = _Device(task, parts, traced), tf.Module()
    module.variables_held = [variable for variables in device.held.values() for variable in variables]
    with tempfile.TemporaryDirectory() as folder:
        signatures = device.signatures()
        tf.saved_model.save(module, folder, signatures=signatures)
        return convert(Path(folder), list(signatures), task.name, enable_tflite_resource_variables=True)
