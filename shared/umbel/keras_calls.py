"""Calls of a task's Keras model with tensors by name, for the compiler, the evaluation and the Keras trainer."""

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
        return {name: loss if isinstance(loss, str) else loss() for name, loss in task.loss.items()}
    return task.loss if isinstance(task.loss, str) else task.loss()


def made_metrics(task: Task) -> Any:
    """New Keras metrics of the task: a list, or a mapping of output name to list."""
    if isinstance(task.metrics, Mapping):
        return {name: [_made(metric) for metric in given] for name, given in task.metrics.items()}
    return [_made(metric) for metric in task.metrics]


def made_optimizer(task: Task) -> Any:
    """A new Keras optimizer of the task."""
    import keras

    return keras.optimizers.get(task.optimizer) if isinstance(task.optimizer, str) else task.optimizer()


def _made(metric: Any) -> Any:
    return metric if isinstance(metric, str) else metric()
