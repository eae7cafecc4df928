"""Compiles a Keras task into a plan. On the server only this package imports TensorFlow, and only when it is used."""

from collections.abc import Callable
from pathlib import Path

from umbel.keras_import import import_keras
from umbel.plan import Plan
from umbel.task import Task
from umbel_server.compiler.errors import CompileError
from umbel_server.compiler.stages import Stage


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
    compared with Keras's, and nothing is written when they differ. `progress` is called with each stage as it begins.
    Raises CompileError or TaskError.
    """
    import_keras()
    from umbel_server.compiler.compilation import compile_plan

    return compile_plan(task, path, seed, check, min_runtime, progress)


__all__ = ["CompileError", "Stage", "compile_task"]
