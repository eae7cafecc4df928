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
    """Compile `task` into an unsigned plan at `path`; the initial weights are drawn with `seed`.

    `min_runtime` is the oldest version of LiteRT (tflite-runtime) that must run the plan. With `check`, ten training steps
    are compared with Keras, and no plan is written when they differ. `progress` is called at the start of each stage.
    Raises CompileError or TaskError.
    """
    import_keras()
    from umbel_server.compiler.compilation import compile_plan

    return compile_plan(task, path, seed, check, min_runtime, progress)


__all__ = ["CompileError", "Stage", "compile_task"]
