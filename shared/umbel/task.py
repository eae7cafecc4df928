import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umbel.errors import TaskError
from umbel.plan import TASK_NAME
from umbel.tensors import TensorSpec

Spec = TensorSpec | tuple[int, ...]
Specs = Spec | Mapping[str, Spec]
Named = str | Callable[..., Any]
Losses = Named | Mapping[str, Named]
Several = Named | tuple[Named, ...] | list[Named]
Metrics = Several | Mapping[str, Several]


@dataclass(frozen=True)
class Task:
    """A Keras model and how to train it, as the ML engineer writes it. Keras is imported only when `model` is called.

    Attributes:
        name: short name of lower-case letters, digits, `-` and `_`; it names the plan.
        model: function without arguments that returns a built `keras.Model`.
        loss: a Keras loss identifier such as "mse", a `keras.losses.Loss`, a function of (y_true, y_pred), or a function without
            arguments that returns a loss; a mapping of output name to one of these for a model with several outputs.
        inputs: spec of one example's input, or its shape for float32; a mapping of name to these for several inputs. A single
            one is named `x`.
        targets: spec of one example's target, in the same way. A single one is named `y`.
        optimizer: a Keras optimizer identifier, a `keras.Optimizer`, or a function without arguments that returns one.
        learning_rate: learning rate of a run that does not set one.
        metrics: Keras metric identifiers, for example "accuracy" or ("accuracy",), instances of `keras.metrics.Metric`,
            functions of (y_true, y_pred), or functions without arguments that return a metric; a mapping of output name to
            these for a model with several outputs.
        loss_weights: factor of each output's loss, by output name; 1 for outputs that are not named.
        batch_size: examples in one training step, fixed at compile time; a short batch is padded with weight 0.
    """

    name: str
    model: Callable[[], Any]
    loss: Losses
    inputs: Specs
    targets: Specs
    optimizer: Any = "sgd"
    learning_rate: float = 0.01
    metrics: Metrics = ()
    loss_weights: Mapping[str, float] | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        if not TASK_NAME.fullmatch(self.name):
            raise TaskError(
                f"a task's name is at most 64 lower-case letters, digits, '-' and '_'; got {self.name[:80]!r}"
            )
        object.__setattr__(self, "inputs", _specs(self.name, "inputs", self.inputs))
        object.__setattr__(self, "targets", _specs(self.name, "targets", self.targets))
        given = self.metrics
        listed = {name: _listed(own) for name, own in given.items()} if isinstance(given, Mapping) else _listed(given)
        object.__setattr__(self, "metrics", listed)
        if self.batch_size < 1:
            raise TaskError(f"task {self.name}: batch_size must be at least 1, got {self.batch_size}")
        if not self.learning_rate > 0:
            raise TaskError(f"task {self.name}: learning_rate must be positive, got {self.learning_rate}")

    @property
    def input_specs(self) -> dict[str, TensorSpec]:
        """The specs of the inputs by name; `x` for a single one without a name."""
        return _named("x", self.inputs)

    @property
    def target_specs(self) -> dict[str, TensorSpec]:
        """The specs of the targets by name; `y` for a single one without a name."""
        return _named("y", self.targets)


def _specs(task: str, what: str, given: Any) -> TensorSpec | dict[str, TensorSpec]:
    """Specs as given, with a shape as the spec of float32 numbers; raises TaskError on anything else."""

    def spec(value: Any) -> TensorSpec:
        if isinstance(value, TensorSpec):
            return value
        if isinstance(value, tuple | list) and all(isinstance(n, int) and n > 0 for n in value):
            return TensorSpec(tuple(value))
        raise TaskError(
            f"task {task}: its {what} should be a TensorSpec, or the shape of one example such as (4,); got {value!r:.80}"
        )

    return {name: spec(value) for name, value in given.items()} if isinstance(given, Mapping) else spec(given)


def _named(name: str, specs: Any) -> dict[str, TensorSpec]:
    return {name: specs} if isinstance(specs, TensorSpec) else dict(specs)


def _listed(metrics: Any) -> tuple[Any, ...]:
    return tuple(metrics) if isinstance(metrics, tuple | list) else (metrics,)


def load_task(path: Path) -> Task:
    """The Task that the Python file at `path` defines; raises TaskError when there is none or more than one.

    The file is executed, so load only files that you trust. A device loads one only for the Keras trainer, from a file that
    was installed on it.
    """
    if not path.is_file():
        raise TaskError(f"{path}: no such task file")
    spec = importlib.util.spec_from_file_location(f"umbel_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path}: a task file is a Python file ending in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(f"{path}: the file could not be run: {type(error).__name__}: {error}") from error
    tasks = {id(value): value for value in vars(module).values() if isinstance(value, Task)}
    if not tasks:
        raise TaskError(f"{path}: no Task in this file; define one, for example task = umbel.Task(name=..., model=...)")
    if len(tasks) > 1:
        names = ", ".join(sorted(task.name for task in tasks.values()))
        raise TaskError(f"{path}: expected one Task, found {len(tasks)} ({names}); keep one in each file")
    return next(iter(tasks.values()))
