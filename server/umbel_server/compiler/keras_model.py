"""The task's Keras model, losses and optimizer, checked before the model is traced."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
from keras.src.trainers.compile_utils import get_loss

from umbel.errors import TaskError
from umbel.keras_calls import made, made_optimizer, model_arguments, named_outputs, targets_of
from umbel.task import Task
from umbel.tensors import TensorSpec, WeightSpec
from umbel_server.compiler.errors import CompileError
from umbel_server.compiler.tracing import all_layers

_COMPUTED = ("float32", "int32", "int64", "bool", "uint8")
_TRAINING = ("train_step", "compute_loss", "compute_metrics", "test_step", "train_on_batch", "fit")
"""The methods of a Keras model that Keras calls for training. A plan's train step replaces them, so a model must not
override them."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class KerasParts:
    """A task's Keras model, losses and optimizer.

    `targets` holds the target's name, and `losses` the Keras loss (reduction none) and the loss weight, both by output
    name. `inputs` and `outputs` are specs of one example. `trained` are the model's trainable variables, whose slots the
    optimizer holds. `fixed` are the paths of the weights that the train step does not assign; it is empty until the step
    has been traced.
    """

    model: Any
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    targets: dict[str, str]
    losses: dict[str, tuple[Any, float]]
    optimizer: Any
    fixed: frozenset[str] = frozenset()

    @property
    def weights(self) -> list[Any]:
        """The weights that training changes, by gradients or otherwise (moving statistics), in Keras's order.

        These weights travel between server and devices.
        """
        return [w for w in self.model.weights if w.path not in self.fixed]

    @property
    def constants(self) -> list[Any]:
        """The weights that training does not change, such as those of frozen layers; they are constants in a plan."""
        return [w for w in self.model.weights if w.path in self.fixed]

    @property
    def trained(self) -> list[Any]:
        """The weights that training changes by gradients, in Keras's order."""
        return list(self.model.trainable_variables)

    @property
    def weight_specs(self) -> tuple[WeightSpec, ...]:
        """The weights that travel, as the manifest lists them."""
        return tuple(
            WeightSpec(w.path, tuple(int(n) for n in w.shape), str(w.dtype), bool(w.trainable)) for w in self.weights
        )

    def call(self, inputs: Mapping[str, Any], training: bool) -> dict[str, Any]:
        """The model's outputs by name, for inputs by name."""
        return named_outputs(self.model, self.model(self.arguments(inputs), training=training))

    def arguments(self, inputs: Mapping[str, Any]) -> Any:
        """The argument to call the model with (see umbel.keras_calls.model_arguments)."""
        return model_arguments(self.model, inputs)


def keras_parts(task: Task, seed: int) -> KerasParts:
    """Build the task's model with seeded initial weights; raises TaskError or CompileError on what cannot be compiled."""
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    try:
        model = task.model()
    except Exception as error:
        raise TaskError(
            f"task {task.name}: its model function failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(model, keras.Model):
        raise TaskError(f"task {task.name}: its model function should return a keras.Model, got {type(model).__name__}")
    symbols = {
        name: keras.KerasTensor((task.batch_size, *spec.shape), dtype=spec.dtype, name=name)
        for name, spec in task.input_specs.items()
    }
    _check_input(task, model)
    try:
        given = _symbolic(model, model_arguments(model, symbols))
        outputs = named_outputs(model, given)
    except Exception as error:
        raise TaskError(
            f"task {task.name}: its model does not take the task's inputs "
            f"({', '.join(f'{n} {list(s.shape)}' for n, s in task.input_specs.items())}): {first_line(error)}"
        ) from error
    if len(outputs) > 1 and not isinstance(given, Mapping) and not getattr(model, "output_names", None):
        raise CompileError(
            f"model {model.name} is a class of its own with several outputs that have no names; let its call return a mapping "
            "of name to output"
        )
    _check_own_methods(model)
    _check_layers(model)
    targets = targets_of(task, list(outputs))
    specs = {
        name: TensorSpec(tuple(int(n) for n in value.shape[1:]), str(value.dtype)) for name, value in outputs.items()
    }
    return KerasParts(
        model,
        task.input_specs,
        specs,
        targets,
        {name: _loss(task, name, targets[name], outputs[name]) for name in targets},
        _optimizer(task),
    )


def value_counts(parts: KerasParts) -> dict[str, int]:
    """The number of valid values, 0 to n - 1, by name: of targets that are class labels, and of inputs of embeddings.

    A target whose loss has an `ignore_class` is left out, because that label is valid too.
    """
    counts: dict[str, int] = {}
    for output, (loss, _) in parts.losses.items():
        labels = getattr(loss, "fn", None) is keras.losses.sparse_categorical_crossentropy
        if labels and getattr(loss, "_fn_kwargs", {}).get("ignore_class") is None and parts.outputs[output].shape:
            counts[parts.targets[output]] = parts.outputs[output].shape[-1]
    given = list(getattr(parts.model, "inputs", None) or [])
    known = {id(tensor): tensor.name for tensor in given}
    for layer in all_layers(parts.model):
        if isinstance(layer, keras.layers.Embedding):
            for tensor in (tensor for node in layer._inbound_nodes for tensor in node.input_tensors):
                name = next(iter(parts.inputs)) if len(parts.inputs) == 1 else known.get(id(tensor), "")
                if id(tensor) in known and name in parts.inputs:
                    counts[name] = min(counts.get(name, layer.input_dim), layer.input_dim)
    return counts


def _check_own_methods(model: Any) -> None:
    """Raise CompileError when a model has a part of Keras's training of its own, which a plan does not run."""
    for method in _TRAINING:
        own = next(kind for kind in type(model).__mro__ if method in vars(kind))
        if method in vars(model) or own.__module__.partition(".")[0] != "keras":
            raise CompileError(
                f"model {model.name} ({type(model).__name__}) has a {method} of its own, which a plan does not run: devices "
                "train by Keras's own train_step; say it with the task's loss and metrics, and with add_loss in a layer"
            )


def _symbolic(model: Any, arguments: Any) -> Any:
    return keras.src.backend.compute_output_spec(lambda given: model(given, training=False), arguments)


def _check_layers(model: Any) -> None:
    for layer in all_layers(model):
        kind = type(layer).__name__
        if getattr(layer, "data_format", "channels_last") == "channels_first":
            raise CompileError(f"layer {layer.name} ({kind}) is channels_first; devices compute channels_last only")
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            raise CompileError(f"layer {layer.name} ({kind}) is stateful; devices shuffle examples: use stateful=False")
        if (compute := str(getattr(layer, "compute_dtype", None) or "float32")) not in _COMPUTED:
            raise CompileError(
                f"layer {layer.name} ({kind}) computes in {compute}; devices train float32: drop its dtype"
            )
        if getattr(layer, "renorm", False):
            raise CompileError(f"layer {layer.name} ({kind}) has renorm=True; use plain batch normalization")
    for weight in model.weights:
        if str(weight.dtype) not in ("float32", "int32", "int64"):
            raise CompileError(f"weight {weight.path} is {weight.dtype}; plans train float32")
    if len(model.weights) == 0 or not model.trainable_variables:
        raise CompileError(f"model {model.name} has no trainable weights: there is nothing to train")


def _check_input(task: Task, model: Any) -> None:
    shapes = [tuple(tensor.shape[1:]) for tensor in getattr(model, "inputs", None) or []]
    if len(shapes) != len(task.input_specs) or len(shapes) != 1:
        return
    (shape,), (spec,) = shapes, task.input_specs.values()
    if len(shape) != len(spec.shape) or any(a not in (None, b) for a, b in zip(shape, spec.shape, strict=True)):
        raise TaskError(f"task {task.name}: its inputs are {list(spec.shape)}, its model takes {list(shape)}")


def _loss(task: Task, output: str, target: str, value: Any) -> tuple[Any, float]:
    given = task.loss[output] if isinstance(task.loss, Mapping) else task.loss
    spec = task.target_specs[target]
    symbol = keras.KerasTensor((task.batch_size, *spec.shape), dtype=spec.dtype)
    try:
        loss = get_loss(made(given), symbol, value)
    except Exception as error:
        raise TaskError(f"task {task.name}: its loss cannot be made: {first_line(error)}") from error
    if getattr(loss, "reduction", None) not in ("sum_over_batch_size", "mean", "mean_with_sample_weight"):
        raise CompileError(
            f"task {task.name}: its loss has reduction {loss.reduction!r}; plans average over the batch, as "
            "'sum_over_batch_size' does"
        )
    own = object.__new__(
        type(loss)
    )  # a copy, because the task may use the object again; Keras itself copies registered classes only
    own.__dict__.update(loss.__dict__)
    own.reduction = "none"
    return own, float((task.loss_weights or {}).get(output, 1.0))


def _optimizer(task: Task) -> Any:
    try:
        optimizer = made_optimizer(task)
    except Exception as error:
        raise TaskError(f"task {task.name}: its optimizer cannot be made: {first_line(error)}") from error
    kind = type(optimizer).__name__
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise CompileError(
            f"task {task.name}: {kind} is for float16, and plans train float32; give the optimizer that is inside it"
        )
    if optimizer.gradient_accumulation_steps:
        raise CompileError(
            f"task {task.name}: {kind}'s gradient_accumulation_steps cannot be compiled; use a larger batch_size"
        )
    if optimizer.use_ema:
        raise CompileError(f"task {task.name}: {kind}'s use_ema cannot be compiled; the server averages weights")
    if not isinstance(getattr(optimizer, "_learning_rate", None), keras.Variable):
        raise CompileError(
            f"task {task.name}: {kind} has a learning-rate schedule; the run sets the learning rate: give a number"
        )
    return optimizer


def first_line(error: Exception) -> str:
    """The message of a Keras exception in one line, without its standard introduction and its terminal colours."""
    lines = [_COLOUR.sub("", line).strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith("Exception encountered")]
    return telling[0][:400] if telling else type(error).__name__
