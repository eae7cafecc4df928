"""Keras task in, plan out: the only place on the server that imports TensorFlow, and only when it is used."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from umbel.errors import UmbelError
from umbel.keras_import import import_keras
from umbel.plan import Plan
from umbel.task import Task


class CompileError(UmbelError):
    """A task that cannot be compiled: which layer or op, why, and what to use instead."""


@dataclass(frozen=True)
class Stage:
    """What compilation is doing: the `number`-th of `count` stages.

    As a rule it takes from `begins` to `ends` of the whole time, 0 to 1: the shares are those of large models.
    """

    text: str
    number: int
    count: int
    begins: float
    ends: float


def compile_task(
    task: Task,
    path: Path,
    *,
    seed: int = 0,
    check: bool = True,
    min_runtime: str = "2.14",
    progress: Callable[[Stage], None] = lambda stage: None,
) -> Plan:
    """Compile `task` into an unsigned plan at `path`, its initial weights drawn with `seed`.

    `min_runtime` is the oldest LiteRT (tflite-runtime) that has to run the plan. With `check`, ten training steps are
    compared with Keras's, and nothing is written when they differ. `progress` is told of every stage when it begins. Raises
    CompileError or TaskError.
    """
    import_keras()
    from umbel_server.compiler.pipeline import compile_plan

    return compile_plan(task, path, seed, check, min_runtime, progress)


__all__ = ["CompileError", "Stage", "compile_task"]
