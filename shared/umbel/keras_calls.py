"""Calls of a task's Keras model with tensors by name, for the compiler, the evaluation and the Keras trainer."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from umbel.errors import TaskError
from umbel.task import Task


def model_arguments(model: Any, inputs: Mapping[str, Any]) -> Any:
    """The argument to call `model` with: the single input; else the inputs by the model's own names, or a list in order."""
    if len(inputs) == 1:
        return next(iter(inputs.values()))
    names = [tensor.name for tensor in getattr(model, "inputs", None) or []]
    if names and set(names) == set(inputs):
        import keras

        structure = getattr(model, "_inputs_struct", None)  # may be nested
        return keras.tree.map_structure(lambda tensor: inputs[tensor.name], structure) if structure else dict(inputs)
    if not names:
        return dict(inputs)
    return list(inputs.values())


def named_outputs(model: Any, outputs: Any) -> dict[str, Any]:
    """A model's outputs by name: `output` when there is one, else the model's own names, or `output_0`, `output_1`, ..."""
    if isinstance(outputs, Mapping):
        return dict(outputs) if len(outputs) > 1 else {"output": next(iter(outputs.values()))}
    if not isinstance(outputs, list | tuple):
        return {"output": outputs}
    if len(outputs) == 1:
        return {"output": outputs[0]}
    names = list(getattr(model, "output_names", [])) or [f"output_{i}" for i in range(len(outputs))]
    return dict(zip(names, outputs, strict=True))


def targets_of(task: Task, outputs: Sequence[str]) -> dict[str, str]:
    """The target's name by output name, for every output that has a loss; raises TaskError when they do not match."""
    wanted = list(task.loss) if isinstance(task.loss, Mapping) else list(outputs)
    if unknown := sorted(set(wanted) - set(outputs)):
        raise TaskError(
            f"task {task.name}: a loss is given for output {unknown[0]!r}; the model has {', '.join(outputs)}"
        )
    names = list(task.target_specs)
    if len(wanted) != len(names):
        raise TaskError(
            f"task {task.name}: {len(wanted)} outputs have a loss ({', '.join(wanted)}) but there are {len(names)} targets "
            f"({', '.join(names)}); give one target an output"
        )
    if len(names) == 1 or set(names) != set(wanted):
        return dict(zip(wanted, names, strict=True))
    return {name: name for name in wanted}


def made_losses(task: Task) -> Any:
    """New Keras losses of the task: one, or a mapping by output name."""
    if isinstance(task.loss, Mapping):
        return {name: made(loss) for name, loss in task.loss.items()}
    return made(task.loss)


def made_metrics(task: Task) -> Any:
    """New Keras metrics of the task: a list, or a mapping of output name to list."""
    metrics: Any = task.metrics  # the task has made tuples of whatever it was given
    if isinstance(metrics, Mapping):
        return {name: [made(metric) for metric in given] for name, given in metrics.items()}
    return [made(metric) for metric in metrics]


def made_optimizer(task: Task) -> Any:
    """A new Keras optimizer of the task."""
    import keras

    return keras.optimizers.get(task.optimizer) if isinstance(task.optimizer, str) else made(task.optimizer)


def made(given: Any) -> Any:
    """A loss, metric or optimizer as Keras takes it, new at each call.

    A name and a function of (y_true, y_pred) stay what they are; an instance that holds variables is made again from
    its configuration; a class or a function without arguments is called.
    """
    if isinstance(given, str):
        return given
    if not isinstance(given, type) and hasattr(given, "get_config"):
        return type(given).from_config(given.get_config()) if hasattr(given, "variables") else given
    return given if _takes_predictions(given) else given()


def _takes_predictions(given: Any) -> bool:
    if isinstance(given, type):
        return False
    needed = [
        parameter
        for parameter in inspect.signature(given).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return len(needed) == 2
